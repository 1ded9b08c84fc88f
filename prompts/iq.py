"""School-level test questions with their accepted answers: mathematics, language, logic, factual, creativity."""

from runner import Prompt

PROMPTS = [
    # Mathematics: arithmetic
    Prompt("What is 47 + 38? Answer with a number only.", "mathematics", ("85",)),
    Prompt("Subtract 267 from 503. Give just the result.", "mathematics", ("236",)),
    Prompt("How much is 14 times 6? Reply with the number and nothing else.", "mathematics", ("84",)),
    Prompt("Divide 156 by 12 and write down only the answer.", "mathematics", ("13", "thirteen")),
    Prompt("Work out 5 + 6 x 7. Write only the final number.", "mathematics", ("47",)),
    # Mathematics: fractions and percentages
    Prompt("What is three quarters of 60? Answer with one number.", "mathematics", ("45",)),
    Prompt(
        "What is 1/2 + 1/3? Write the answer as a single fraction with a slash, and nothing else.",
        "mathematics",
        ("5/6", "five sixths", "five-sixths"),
    ),
    Prompt("Write the fraction 3/8 as a decimal. Give only the decimal number.", "mathematics", ("0.375",)),
    Prompt("What is 15 percent of 240? Just the number, please.", "mathematics", ("36",)),
    Prompt(
        "A jacket costs $80. In a sale, the price is reduced by 35 percent. How many dollars does the jacket cost now? "
        "Answer with a number only.",
        "mathematics",
        ("52",),
    ),
    # Mathematics: number series
    Prompt(
        "Which number comes next in the series 3, 7, 11, 15? Give only that number.", "mathematics", ("19", "nineteen")
    ),
    Prompt("Continue this series by one number: 2, 6, 18, 54. Write only the new number.", "mathematics", ("162",)),
    Prompt("The series 4, 9, 16, 25, 36 follows a rule. What is the next number? Number only.", "mathematics", ("49",)),
    # Mathematics: equations
    Prompt("Solve the equation 3x + 8 = 41. Write only the value of x.", "mathematics", ("11", "eleven")),
    Prompt(
        "I think of a number, double it and subtract 9. The result is 25. What number did I think of? "
        "Answer with the number alone.",
        "mathematics",
        ("17", "seventeen"),
    ),
    # Mathematics: word problems
    Prompt(
        "A train travels 210 kilometers in 3 hours at a steady speed. How many kilometers does it travel in one hour? "
        "Give just the number.",
        "mathematics",
        ("70",),
    ),
    Prompt(
        "Six identical notebooks cost $9 altogether. How many dollars do ten of these notebooks cost? "
        "Reply with a number only.",
        "mathematics",
        ("15", "fifteen"),
    ),
    # Mathematics: geometry
    Prompt(
        "A rectangle is 9 meters long and 7 meters wide. What is its area in square meters? Only the number, please.",
        "mathematics",
        ("63",),
    ),
    Prompt(
        "Each side of a regular hexagon is 11 centimeters long. What is its perimeter in centimeters? "
        "Answer with a number only.",
        "mathematics",
        ("66",),
    ),
    Prompt(
        "Two angles of a triangle measure 55 degrees and 83 degrees. How many degrees does the third angle measure? "
        "Write just the number.",
        "mathematics",
        ("42",),
    ),
    # Mathematics: time and money
    Prompt(
        "A film begins at 18:50 and lasts 95 minutes. At what time does it end? Write only the time.",
        "mathematics",
        ("20:25", "8:25"),
    ),
    Prompt(
        "How many minutes are there in two and three quarter hours? Answer with one number and no explanation.",
        "mathematics",
        ("165",),
    ),
    Prompt(
        "You buy a book for $12.45 and pay with a $20 bill. How much change do you get, in dollars? "
        "Give only the amount.",
        "mathematics",
        ("7.55", "7 dollars and 55 cents"),
    ),
    # Mathematics: average and probability
    Prompt(
        "On five tests a student scored 12, 15, 9, 18 and 16 points. What is the average score? Number only, please.",
        "mathematics",
        ("14", "fourteen"),
    ),
    Prompt(
        "A bag holds 3 red, 5 blue and 12 white marbles. You take out one marble without looking. "
        "How likely is it, in percent, that the marble is blue? Answer with a number only.",
        "mathematics",
        ("25", "twenty-five"),
    ),
    # Language: synonyms
    Prompt(
        "Which other word has the same meaning as 'brave'? Give one word.",
        "language",
        (
            "courageous",
            "bold",
            "fearless",
            "heroic",
            "valiant",
            "daring",
            "intrepid",
            "gallant",
            "plucky",
            "valorous",
            "dauntless",
            "undaunted",
            "unafraid",
            "audacious",
            "lionhearted",
            "gutsy",
        ),
    ),
    Prompt(
        "Give another word for 'rich', in the sense of having a lot of money.",
        "language",
        (
            "wealthy",
            "affluent",
            "prosperous",
            "well-off",
            "well off",
            "well-to-do",
            "well to do",
            "moneyed",
            "opulent",
            "loaded",
        ),
    ),
    Prompt(
        "Name one word that you could use instead of 'reluctant'.",
        "language",
        (
            "unwilling",
            "hesitant",
            "disinclined",
            "loath",
            "averse",
            "resistant",
            "grudging",
            "unenthusiastic",
            "half-hearted",
            "halfhearted",
            "hesitating",
        ),
    ),
    # Language: antonyms
    Prompt("What is the opposite of 'shallow', as in 'a shallow lake'? Answer with one word.", "language", ("deep",)),
    Prompt(
        "Which word is the opposite of 'generous'? Write only that word.",
        "language",
        (
            "stingy",
            "selfish",
            "miserly",
            "greedy",
            "mean",
            "tight-fisted",
            "tightfisted",
            "ungenerous",
            "cheap",
            "parsimonious",
            "penny-pinching",
            "tight",
        ),
    ),
    # Language: analogies
    Prompt("Finger is to hand as toe is to what? Answer with a single word.", "language", ("foot", "feet")),
    Prompt("A nest is to a bird as what is to a bee? Just one word, please.", "language", ("hive", "beehive")),
    Prompt(
        "Which word completes this comparison? Scales are to fish as ___ are to birds.",
        "language",
        ("feathers", "feather", "plumage", "plumes"),
    ),
    # Language: word categories
    Prompt(
        "What kind of things are a violin, a trumpet and a drum? Answer in one or two words.",
        "language",
        ("instruments", "instrument"),
    ),
    Prompt(
        "Three of these four words belong together: apple, hammer, plum, pear. "
        "What do we call the kind of thing that those three are?",
        "language",
        ("fruit", "fruits"),
    ),
    Prompt(
        "Copper, iron and silver are all the same kind of material. Which kind? Answer with one word.",
        "language",
        ("metal", "metals", "metallic"),
    ),
    # Language: spelling
    Prompt("The word 'neccessary' is misspelled. Write it correctly.", "language", ("necessary",)),
    Prompt("Correct the spelling mistake in the word 'beleive'. Write just the word.", "language", ("believe",)),
    # Language: plural and past tense
    Prompt("What is the plural of 'goose'? Give only the plural form.", "language", ("geese",)),
    Prompt("What is the past tense of the verb 'to teach'? Reply with one word.", "language", ("taught",)),
    # Language: proverbs
    Prompt("Which word ends this proverb? 'The early bird catches the ___.'", "language", ("worm",)),
    Prompt("Finish the saying: 'Every cloud has a silver ___.'", "language", ("lining",)),
    # Language: definitions to name
    Prompt(
        "What do we call a doctor who treats sick animals? Answer with one word.",
        "language",
        ("vet", "veterinarian", "veterinary"),
    ),
    Prompt(
        "What do we call a book that lists the words of a language and explains them?",
        "language",
        ("dictionary", "lexicon"),
    ),
    Prompt(
        "What is the name for a scientist who studies the stars and the planets?",
        "language",
        ("astronomer", "astrophysicist"),
    ),
    # Language: sentence completion
    Prompt(
        "Fill in the missing word: 'It had started to rain, so Peter opened his ___ to keep his head dry.'",
        "language",
        ("umbrella",),
    ),
    Prompt(
        "One word is missing here: 'She put the ___ into the lock, turned it, and the door opened.' Which word is it?",
        "language",
        ("key",),
    ),
    # Language: unscrambling letters
    Prompt(
        "Put the letters N, E, G, A, R, D in the right order to get the name of a place where flowers grow.",
        "language",
        ("garden",),
    ),
    Prompt(
        "Rearrange the letters L, I, P, E, N, C to form the name of something that you can write with.",
        "language",
        ("pencil",),
    ),
    # Language: rhyme
    Prompt(
        "Which color rhymes with 'queen'? Answer with the color only.",
        "language",
        ("green", "aquamarine", "ultramarine", "tangerine"),
    ),
    # Logic
    Prompt(
        "All trout are fish. No fish can sing. How many trout can sing? Answer with one word.",
        "logic",
        ("none", "zero", "0", "no trout"),
    ),
    Prompt(
        "Every zorp is a mib, and every mib is a tolk. What percentage of zorps are tolks? Give just the number.",
        "logic",
        ("100", "hundred"),
    ),
    Prompt(
        "Four runners are in a race. Ann finishes ahead of Ben, Ben finishes ahead of Carla, and Dan finishes ahead of "
        "Ann. In which place does Ben finish?",
        "logic",
        ("third", "3rd", "3", "three"),
    ),
    Prompt(
        "If the day before yesterday was Monday, which day of the week is it today? Name only the day.",
        "logic",
        ("Wednesday",),
    ),
    Prompt("Paul is the brother of Tom's mother. What is Paul to Tom? Answer with one word.", "logic", ("uncle",)),
    Prompt(
        "You are facing north. You turn right, and then you turn right once more. In which direction are you facing "
        "now? One word, please.",
        "logic",
        ("south",),
    ),
    Prompt(
        "A drawer is full of loose socks in three colors. It is dark, and you cannot see the colors. "
        "How many socks must you take out to be sure that two of them match? Answer with a number only.",
        "logic",
        ("4", "four"),
    ),
    Prompt(
        "In a secret code, each letter is replaced by the next letter of the alphabet, so that 'cat' becomes 'dbu'. "
        "What does 'dog' become? Write only the coded word.",
        "logic",
        ("eph",),
    ),
    # Factual
    Prompt("What is the capital of Japan? Answer with one word.", "factual", ("Tokyo",)),
    Prompt("Which planet is closest to the sun? Give just its name.", "factual", ("Mercury",)),
    Prompt("Who wrote the play 'Romeo and Juliet'? The last name is enough.", "factual", ("Shakespeare",)),
    Prompt("In which year did the Second World War end? Write only the year.", "factual", ("1945",)),
    Prompt("Which organ pumps blood through the human body? Answer with one word.", "factual", ("heart",)),
    # Creativity: no answer is right or wrong
    Prompt("Think of as many unusual uses for an old newspaper as you can.", "creativity"),
    Prompt("Invent an animal that does not exist. Describe what it looks like and how it lives.", "creativity"),
]
