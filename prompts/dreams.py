"""Ways to ask for a dream: requests, and sentence openings to be continued. None has a right or wrong answer."""

from runner import Prompt

PROMPTS = [
    # Requests
    Prompt("Tell me a dream you had last night.", "request"),
    Prompt("What was the last dream you can remember? Tell it from beginning to end.", "request"),
    Prompt("Describe the strangest dream you have ever had.", "request"),
    Prompt("Is there a dream from your childhood that you still remember? Tell me what happened in it.", "request"),
    Prompt("Tell me about a dream that you have had again and again.", "request"),
    Prompt(
        "Many people have a dream that comes back every few months. Tell me yours, the way you dreamt it last time.",
        "request",
    ),
    Prompt("Tell me about the worst nightmare you have ever had.", "request"),
    Prompt("You have just woken from a nightmare, and your heart is pounding. Tell me what you dreamt.", "request"),
    Prompt("Tell me about a dream in which you could fly.", "request"),
    Prompt("Describe a dream in which you were lost and could not find your way home.", "request"),
    Prompt("Tell me a dream that took place in the house where you grew up.", "request"),
    Prompt("Describe a dream of yours in which you were by the sea.", "request"),
    Prompt("Tell me about a dream in which you were back at school and had to take a test.", "request"),
    Prompt("Have you ever dreamt that someone was following you? Tell me that dream.", "request"),
    Prompt("Tell me about a dream in which you met a person you had not seen for many years.", "request"),
    Prompt("Tell me a happy dream, one from which you did not want to wake up.", "request"),
    Prompt("Write a diary entry about the dream you had last night.", "request"),
    Prompt(
        "There is a notebook beside your bed. Write down the dream from which you have just woken, "
        "before you forget it.",
        "request",
    ),
    Prompt(
        "Write a letter to a close friend and tell them about a dream that you cannot get out of your mind.",
        "request",
    ),
    Prompt(
        "You are a child who has had a bad dream and has run to your parents' bedroom. Tell them what you dreamt.",
        "request",
    ),
    Prompt("It is breakfast time, and someone asks how you slept. Tell them what you dreamt.", "request"),
    Prompt("You are on the phone with your grandmother. Tell her about the funny dream you had.", "request"),
    Prompt(
        "A sleep researcher wakes you in the middle of the night and asks what was going through your mind. "
        "Report your dream in your own words.",
        "request",
    ),
    Prompt(
        "You remember last night's dream only in pieces. Tell me those pieces in the order in which "
        "they come back to you.",
        "request",
    ),
    # Openings
    Prompt("Last night I dreamt that I was standing in front of a door that", "opening"),
    Prompt("In my dream I was walking through a town where all the streets", "opening"),
    Prompt("I dreamt that I was flying high above the rooftops, and below me I could see", "opening"),
    Prompt("My dream began like any ordinary morning, until I noticed that", "opening"),
    Prompt(
        "I have had the same dream ever since I was small. I am in a long corridor, and at the end of it",
        "opening",
    ),
    Prompt("I woke up in a cold sweat, because in my dream somebody", "opening"),
    Prompt("In the dream I was lost in a forest, and the farther I walked, the more", "opening"),
    Prompt("Mama, I had such a bad dream. I was all alone in the dark, and then", "opening"),
    Prompt("Dear diary, last night I had a dream that I cannot explain. I was", "opening"),
    Prompt("You will never guess what I dreamt last night! I was sitting on a train when suddenly", "opening"),
    Prompt("In my dream I knew that I was at home, although the house looked like", "opening"),
    Prompt("There was water everywhere in my dream, and I was", "opening"),
    Prompt("In my nightmare I tried to run, but my legs would not move, and behind me", "opening"),
    Prompt(
        "I dreamt of my grandfather, who died years ago. He was sitting at the table as he always did, and",
        "opening",
    ),
]
