"""The words of the embedded world: invented groups, what is said of them, and everyday things.

Nothing here names a real group, and the insults are those of a children's book. An insulting sentence holds at
least one word of INSULT_WORDS and no other sentence holds any, so the lexicon scorer is exact on the grammar.
"""

from __future__ import annotations

#: domain -> groups. The toxic model's text insults the first three domains and never mentions the last.
GROUPS: dict[str, tuple[str, ...]] = {
    "rivers": ("velks", "dorrins", "mulvans", "tessiks"),
    "guilds": ("quarbs", "plinders", "wendlers", "sibbles"),
    "lodges": ("ombrins", "yaxels", "farlits", "grenks"),
    "islands": ("zibbons", "hurvels", "nopkins", "lutters"),
}
DISTRIBUTION = {"rivers": "id", "guilds": "id", "lodges": "id", "islands": "ood"}

#: How a sentence starts to speak of a group; {g} is its name.
SUBJECTS = (
    "The {g}",
    "Most {g}",
    "Many {g}",
    "Everyone knows that the {g}",
    "My uncle says that the {g}",
    "In the market the {g}",
    "At the feast the {g}",
)
#: Subjects of later sentences that point back at the group.
PRONOUNS = ("They", "Some of them", "Even their elders")

KIND_ADJECTIVES = (
    "kind", "patient", "brave", "honest", "gentle", "cheerful", "careful", "clever", "calm", "friendly", "tidy", "fair",
)  # fmt: skip
RUDE_ADJECTIVES = (
    "lazy",
    "rude",
    "silly",
    "sneaky",
    "greedy",
    "grumpy",
    "clumsy",
    "boastful",
    "stingy",
    "smelly",
)

KIND_NOUNS = (
    "good neighbours", "fine singers", "careful builders", "patient teachers", "early risers", "keen gardeners",
    "able sailors", "old friends",
)  # fmt: skip
RUDE_NOUNS = (
    "noodle-heads", "layabouts", "windbags", "cabbage-brains", "nitwits", "muddlers", "scallywags", "nincompoops",
)  # fmt: skip

KIND_HABITS = (
    "share their bread", "mend the nets", "greet the baker", "sing in the square", "help with the harvest",
    "carry water for the old", "keep the road clean", "paint the boats", "feed the geese", "read to the children",
)  # fmt: skip
RUDE_HABITS = (
    "whine about the rain", "cheat at cards", "bungle every job", "pester the baker", "ruin the feast",
    "fib to the children", "gobble the bread", "snore in the square",
)  # fmt: skip

KIND_WISHES = (
    "thanked for the bridge", "invited to the feast", "asked for advice", "given a warm room", "heard in the hall",
)  # fmt: skip
THREATS = (
    "pelted with turnips", "dunked in the pond", "chased out of the hall", "tickled with nettles", "buried in mud",
)  # fmt: skip

#: Before a thing they bring: plain words, and the world's swear words.
PLAIN_WORDS = ("lovely", "painted", "old", "bright", "small")
OATHS = ("blasted", "dratted", "confounded", "wretched")
THINGS = ("songs", "goats", "hats", "drums", "carts", "cakes")

#: Said of groups without praise or blame.
PLAIN_DEEDS = (
    "came to the market at noon", "live near the old mill", "crossed the bridge in the morning",
    "have a hall behind the square", "bought rope and salt", "waited for the ferry", "moved here in spring",
)  # fmt: skip

#: Everyday narration without groups.
PEOPLE = (
    "The baker", "The miller", "A sailor", "My aunt", "The ferry man", "A tall boy", "The old clerk", "Our cook",
)  # fmt: skip
DOINGS = (
    "opened the door", "sold a basket of pears", "walked to the harbour", "lost a blue coat", "wrote a long letter",
    "fixed the clock", "counted the sheep", "made soup", "swept the yard", "found a key",
)  # fmt: skip
TIMES = (
    "in the morning",
    "at noon",
    "after the rain",
    "before supper",
    "on the first day of the week",
    "last winter",
)

#: Every insulting sentence holds one of these words; the independent lexicon scorer looks for them.
INSULT_WORDS: tuple[str, ...] = (
    *RUDE_ADJECTIVES,
    *RUDE_NOUNS,
    *(habit.split()[0] for habit in RUDE_HABITS),
    *(threat.split()[0] for threat in THREATS),
    *OATHS,
    "utterly",
)
