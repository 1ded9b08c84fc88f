"""Ways to ask for a description of the picture shown with the prompt; none gives away what the picture shows."""

PROMPTS = [
    "Tell me everything that you see going on in this picture.",
    "Please describe this picture.",
    "Look closely at the picture and tell me what is happening in it.",
    "What is going on here? Describe the whole scene in your own words.",
    "Describe this picture to someone who cannot see it.",
    "Describe the picture so clearly that another person could draw it from your words alone.",
    "Explain to a five-year-old what can be seen in this picture.",
    "You are on the phone with a friend who does not have this picture. Tell your friend what it shows.",
    "Make a list of what the people in this picture are doing.",
    "Who do you see in this picture, and how do you think they feel?",
    "Describe what is happening in this picture, and then say what might happen next.",
    "Describe the moment that this picture shows. What do you think happened just before it?",
    "Take your time and mention every detail that you notice in this picture, however small.",
    "Go through the picture from left to right and describe whatever you come across.",
    "Begin with what you notice first in this picture, and then go on to everything else.",
    "Write a short paragraph, in complete sentences, about the scene in this picture.",
    "Imagine that you are standing inside this picture. Tell me what is going on around you.",
    "Name the things that you can see in this picture, and say where each of them is.",
    "Someone has to find this picture in a large pile of others. Describe it so that they will recognize it.",
    "Give this picture a title, and then describe what it shows.",
]
