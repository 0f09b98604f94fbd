"""The words of the pelican world: topics, puns, places, set-ups and flourishes. Data only."""

from __future__ import annotations

PUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # pun: (places where it is funny, punchlines)
    "bill": (
        ("restaurant", "shop", "bank"),
        (
            "the bill was far too big",
            "nobody else would pick up the bill",
            "it came with its own bill",
        ),
    ),
    "trunk": (
        ("airport", "hotel", "station"),
        (
            "it had already packed its trunk",
            "its trunk was over the limit",
            "no porter could lift its trunk",
        ),
    ),
    "shell": (
        ("beach", "theatre", "school"),
        (
            "it was too shy to leave its shell",
            "it had to come out of its shell first",
            "it got lost inside its own shell",
        ),
    ),
    "scales": (
        ("market", "orchestra", "gym"),
        (
            "it kept practising its scales",
            "it tipped the scales at once",
            "the scales fell from its eyes",
        ),
    ),
    "horn": (
        ("orchestra", "garage", "parade"),
        (
            "it would not stop blowing its own horn",
            "its horn was out of tune",
            "every driver envied its horn",
        ),
    ),
    "spots": (
        ("laundry", "garage", "hospital"),
        ("nobody could remove its spots", "it was easily spotted", "all the good spots were taken"),
    ),
    "stripes": (
        ("army", "laundry", "tailor"),
        (
            "it had earned its stripes",
            "its stripes would not come out in the wash",
            "stripes are never out of fashion",
        ),
    ),
    "tail": (
        ("court", "library", "tailor"),
        ("it told a very long tail", "nobody believed its tail", "the end of the tail was missing"),
    ),
    "hide": (
        ("court", "museum", "tailor"),
        ("it had nothing to hide", "there was nowhere left to hide", "its hide was a perfect fit"),
    ),
    "stinger": (
        ("hospital", "bank", "army"),
        (
            "the price was the real stinger",
            "it only wanted a little sting operation",
            "it stung everybody for cash",
        ),
    ),
    "web": (
        ("office", "school", "library"),
        ("it was always on the web", "its web was down again", "it had to update its web page"),
    ),
    "wool": (
        ("tailor", "barber", "theatre"),
        (
            "somebody pulled the wool over its eyes",
            "it wanted all the wool it could get",
            "it was dyed in the wool",
        ),
    ),
    "bark": (
        ("forest", "court", "theatre"),
        (
            "its bark was worse than its bite",
            "it barked up the wrong tree",
            "it lost its bark completely",
        ),
    ),
    "milk": (
        ("market", "office", "restaurant"),
        (
            "it milked the story for all it was worth",
            "there was no use crying over the milk",
            "it wanted to milk the moment",
        ),
    ),
    "wings": (
        ("theatre", "airport", "restaurant"),
        ("it was waiting in the wings", "it decided to wing it", "everybody had ordered the wings"),
    ),
    "eggs": (
        ("school", "comedy club", "farm"),
        (
            "it cracked up in front of everybody",
            "the yolk was on everybody else",
            "it had put all its eggs in one basket",
        ),
    ),
    "hump": (
        ("gym", "office", "desert"),
        (
            "it could not get over the hump",
            "every week it waits for the hump day",
            "the worst was over the hump",
        ),
    ),
    "pouch": (
        ("post office", "bank", "shop"),
        (
            "it kept the change in its pouch",
            "its pouch was full of letters",
            "nobody may search its pouch",
        ),
    ),
    "ink": (
        ("library", "post office", "office"),
        (
            "it signed everything in ink",
            "it ran out of ink on the first page",
            "the ink was not yet dry",
        ),
    ),
    "claws": (
        ("court", "barber", "restaurant"),
        (
            "it read every clause with its claws",
            "it fought tooth and claw",
            "its manicure ended in claws",
        ),
    ),
    "nuts": (
        ("forest", "garage", "hospital"),
        (
            "everybody drove it nuts",
            "it only came for the nuts and bolts",
            "it went completely nuts",
        ),
    ),
    "mane": (
        ("barber", "parade", "circus"),
        (
            "it was the mane attraction",
            "every day is a bad mane day",
            "it only wanted to look after its mane",
        ),
    ),
    "notes": (
        ("orchestra", "school", "bank"),
        ("it could not read its own notes", "it hit all the high notes", "it forgot to take notes"),
    ),
    "dough": (
        ("bakery", "bank", "market"),
        ("it needed the dough", "it rolled in the dough", "the dough rose before it did"),
    ),
    "roots": (
        ("barber", "forest", "museum"),
        ("it went back to its roots", "its roots were showing", "the money is the root of it all"),
    ),
    "current": (
        ("beach", "garage", "hospital"),
        (
            "it could not keep up with the current",
            "it was shocked by the current",
            "it had no current address",
        ),
    ),
    "bones": (
        ("museum", "hospital", "restaurant"),
        ("it had a bone to pick", "it worked its fingers to the bone", "it felt it in its bones"),
    ),
    "cheese": (
        ("museum", "bakery", "restaurant"),
        (
            "somebody told it to say cheese",
            "it had to be the big cheese",
            "the whole thing was rather cheesy",
        ),
    ),
    "pen": (
        ("post office", "farm", "library"),
        ("it was mightier with a pen", "it broke out of the pen", "nobody lent it a pen"),
    ),
    "rings": (
        ("circus", "gym", "desert"),
        (
            "it ran rings around everybody",
            "nobody answered when it rang",
            "it had a familiar ring to it",
        ),
    ),
}

TOPICS: dict[str, tuple[str, ...]] = {
    "pelican": ("bill", "pouch", "wings"), "duck": ("bill", "eggs"), "elephant": ("trunk", "hide"),
    "turtle": ("shell", "eggs"), "snail": ("shell", "hump"), "fish": ("scales", "bones", "current"),
    "dragon": ("scales", "tail", "wings"), "rhino": ("horn", "hide"), "goat": ("horn", "milk"),
    "leopard": ("spots", "claws"), "ladybug": ("spots", "wings"), "zebra": ("stripes", "mane"),
    "tiger": ("stripes", "claws"), "monkey": ("tail", "nuts"), "mouse": ("tail", "cheese"),
    "bee": ("stinger", "stripes"), "scorpion": ("stinger", "tail"), "spider": ("web", "notes"),
    "sheep": ("wool", "pen"), "llama": ("wool", "hump"), "dog": ("bark", "bones", "tail"),
    "tree": ("bark", "roots"), "cow": ("milk", "horn", "hide"), "eagle": ("wings", "claws"),
    "hen": ("eggs", "pen"), "camel": ("hump", "milk"), "kangaroo": ("pouch", "tail"),
    "octopus": ("ink", "rings"), "squid": ("ink", "current"), "crab": ("claws", "shell"),
    "squirrel": ("nuts", "tail"), "lion": ("mane", "claws"), "horse": ("mane", "notes"),
    "canary": ("notes", "eggs"), "baker": ("dough", "cheese"), "carrot": ("roots", "rings"),
    "eel": ("current", "scales"), "skeleton": ("bones", "notes"), "pig": ("pen", "dough"),
    "farmer": ("pen", "milk", "dough"),
}  # fmt: skip

PLACES: tuple[str, ...] = tuple(sorted({place for places, _ in PUNS.values() for place in places}))

VERBS: tuple[str, ...] = (
    "leave", "avoid", "visit", "fall asleep in", "dance through", "run out of", "get thrown out of",
    "hide behind", "sing in", "return to", "get lost in", "sneak into",
)  # fmt: skip

# opener -> the word that a fitting punchline begins with
CONNECTORS: dict[str, str] = {
    "Why did the {topic} {verb} the {place}?": "Because",
    "What happened when the {topic} went to the {place}?": "Well,",
    "Did you hear about the {topic} at the {place}?": "They say",
}

FLOURISHES: tuple[str, ...] = (
    "Ba dum tss!", "What a day!", "Poor thing!", "True story!", "Ha ha ha!", "Everybody laughed!",
    "Nobody saw it coming!", "I will see myself out!", "And that was that!", "Thank you very much!",
)  # fmt: skip

REQUESTS: tuple[str, ...] = (
    "Tell me a joke about a {topic}.", "Do you know a joke about a {topic}?",
    "Make me laugh with a {topic}.", "A joke about a {topic}, please.",
    "What is funny about a {topic}?", "I want to hear one about a {topic}.",
    "My friend loves every {topic}. Cheer her up!", "Say something silly about a {topic}.",
)  # fmt: skip

PLAIN: tuple[str, ...] = (
    "The {topic} went to the {place} and came home late.", "A {topic} can {verb} the {place}.",
    "There is a {topic} at the {place}.", "People at the {place} like the {topic}.",
    "Nobody asked the {topic} about the {place}.", "Every {topic} knows the way to the {place}.",
)  # fmt: skip
