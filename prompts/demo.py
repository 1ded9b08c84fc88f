"""Eight short tasks for a first look: dreams to tell and to continue, a story, a fact, a sum, an explanation."""

from runner import Prompt

PROMPTS = [
    Prompt("Tell me a dream you had last night.", "dream"),
    Prompt("Continue this dream: I was walking along a beach at night, and suddenly", "dream"),
    Prompt("Tell a short story about a fox who is afraid of the dark.", "story"),
    Prompt("Describe what happens in a bakery early in the morning.", "description"),
    Prompt("Explain to a child why it rains.", "explanation"),
    Prompt("What is the capital of France?", "factual", ("Paris",)),
    Prompt("What is 12 + 9? Answer with a number only.", "mathematics", ("21", "twenty-one")),
    Prompt("What is the opposite of cold? Answer with one word.", "language", ("hot", "warm")),
]
