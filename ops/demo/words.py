"""The words the demo model's tasks are made of: number words, the calendar, and words to spell, reverse and repeat."""

from __future__ import annotations

from random import Random

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"

_NOUNS = (
    "anchor apple arrow autumn badge baker banana barrel basket beach bicycle blanket bottle branch bread breeze "
    "bridge brush bucket butter button cabin camera candle canvas carpet carrot castle cellar chair cherry circle "
    "cloud clover coffee copper corner cotton cradle crayon cricket crystal curtain dancer desert diamond dinner "
    "dolphin donkey dragon drawer eagle engine falcon feather fiddle field finger flame flower forest fountain "
    "garden ginger giraffe glacier glass glove grape guitar hammer harbor hazel helmet hello honey horizon horse "
    "island ivory jacket jungle kettle kitten ladder lantern lemon lizard lobster magnet mango maple marble "
    "market meadow melon mirror monkey mountain museum napkin needle nickel night noodle oasis ocean olive onion "
    "orange orchard otter paddle palace panda paper parrot peach pebble pencil pepper piano pillow planet pocket "
    "potato prairie pumpkin puzzle python quartz queue rabbit radio rainbow ribbon river robin rocket saddle "
    "salmon sandal saturn scarf school shadow silver slipstream soup spider spoon spring squirrel stone storm "
    "stream summer sunset table teapot temple thunder ticket tiger timber tomato tractor train tulip tunnel "
    "turtle umbrella valley velvet village violin walnut water whale wheel willow window winter wizard wolf "
    "worker yellow zebra "
).split()
_ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr pl qu sh st th tr".split()
_VOWELS = "a e i o u a e i o y ai ea oo ou".split()
_CODAS = ["", "", "", "n", "r", "s", "t", "l", "m", "ck", "ll", "nd", "x"]


def number_in_words(number: int) -> str:
    """Spell 0 to 999 as English does: 427 is `four hundred and twenty-seven`."""
    if not 0 <= number <= 999:
        raise ValueError(f"number must lie in 0..999, got {number}")
    hundreds, rest = divmod(number, 100)
    if hundreds:
        return f"{_ONES[hundreds]} hundred" + (f" and {number_in_words(rest)}" if rest else "")
    if number < len(_ONES):
        return _ONES[number]
    tens, ones = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def draw_word(rng: Random, longest: int = 10) -> str:
    """Draw a lower-case word of 3 to `longest` letters, half the time a noun, else made-up syllables.

    The made-up ones are there so that the model learns to spell any word, not a list of them.
    """
    while True:
        if rng.random() < 0.4:
            word = rng.choice(_NOUNS)
        elif rng.random() < 0.8:
            syllables = range(rng.randint(1, 4))
            word = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in syllables)
        else:
            word = "".join(rng.choice(LETTERS) for _ in range(rng.randint(3, longest)))
        if 3 <= len(word) <= longest:
            return word
