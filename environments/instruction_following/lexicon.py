"""Word lists and the shape of words: stop words, pronouns, names, verbs, syllables, emoji. English, own lists, no package."""

from __future__ import annotations

import re

STOP_WORDS = frozenset(
    """i me my myself we our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its
    itself they them their theirs themselves what which who whom this that these those am is are was were be been being have
    has had having do does did doing a an the and but if or because as until while of at by for with about against between
    into through during before after above below to from up down in out on off over under again further then once here there
    when where why how all any both each few more most other some such no nor not only own same so than too very s t can will
    just don should now d ll m o re ve y ain aren couldn didn doesn hadn hasn haven isn ma mightn mustn needn shan shouldn
    wasn weren won wouldn""".split()
)

PRONOUNS = frozenset(
    """i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself ourselves
    yourself yourselves himself herself itself themselves this that these those who whom whose which what whoever whomever
    whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone something each
    either neither both all some any none""".split()
)

PERSON_NAMES = frozenset(
    """Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin Harper Leo
    Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria Elijah Layla Nicholas
    Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella Jonathan""".split()
)

CONJUNCTIONS = frozenset("and but for nor or so yet".split())

_VERBS = frozenset(
    """accept achieve act adapt add address adjust adopt agree allow analyse analyze announce answer apply approach arrange ask
    assemble assess assume attend avoid bake be become begin believe boil bring brush build buy calculate call capture care
    carry catch celebrate challenge change check choose clean climb close collect combine come compare complete compose
    compute concentrate connect consider construct contact continue convert cook count create cross cut dance decide define
    deliver describe design determine develop devise dig discover discuss divide do draft draw dream drink drive eat embrace
    employ enable encourage engage enhance enjoy ensure enter establish estimate evaluate examine exercise expand expect
    experience explain explore express extend extract feed feel fetch fill find finish fix focus fold follow forget forgive
    gather generate get give go grab grow guess guide harness have hear heat help hold hope identify ignore illustrate imagine
    implement imply improve include increase initialize insert inspect install integrate interpret introduce invent
    investigate invest invite involve join jump keep know laugh learn leave lend let leverage lift list listen live locate
    look love maintain make manage measure meet mention mix monitor move multiply navigate need note notice observe offer open
    order organise organize pack paint participate pass pay perform pick place plan play ponder pour practice practise
    prepare present preserve press prevent print prioritise prioritize produce promote protect prove provide pull push put
    raise reach read recall recognise recognize recommend record reduce reflect relax release remember remove rename repeat
    replace reply report request require research respect respond rest return review revise rewrite ride ring rinse run save
    say search see seek select sell send serve set share shift show simplify sing sit skip sleep solve sort speak specify
    spend split stand start state stay step stir stop strengthen stretch study submit suggest summarise summarize support
    suppose swim take talk taste teach tell test think throw touch train transform translate travel treat try turn understand
    update use utilise utilize verify view visit visualize visualise wait wake walk want warm wash watch wear welcome
    whisper win wonder work worry wrap write is are am was were been being has had having does did doing can could may might
    must shall should will would goes went gone made said saw seen took taken gave given knew known began built found held
    kept left lost meant met paid ran sent slept spoke stood taught thought told understood won wrote written""".split()
)
_NOT_VERBS = frozenset(
    """during nothing something everything anything king ring spring string thing morning evening ceiling being darling
    sibling red bed seed need breed speed indeed hundred sacred naked wicked biped infrared kindred shed sled""".split()
)
_MODAL = frozenset("can could may might must shall should will would".split())


def starts_like_verb(tokens: list[str]) -> bool:
    """Whether the first of `tokens` is a verb: from a list, or by its ending (-ing, -ed, -ise, -ize, -ify). A modal is not
    counted: taggers give it a class of its own."""
    word = tokens[0].lower() if tokens else ""
    if word in _MODAL:
        return False
    if word in _VERBS:
        return True
    if word in _NOT_VERBS or len(word) < 5 or not word.isalpha():
        return False
    return word.endswith(("ing", "ed", "ise", "ize", "ify"))


_VOWELS = re.compile(r"[aeiouy]+")


def syllables(word: str) -> int:
    """Syllables of a lower-case English word by its vowel groups, a silent ending not counted; at least 1. A number has as
    many as it has digits."""
    if word.isdigit():
        return len(word)
    groups = len(_VOWELS.findall(word))
    if (
        word.endswith(("ia", "io", "iest", "ier", "ium", "ious", "ience", "iance", "uous", "eo", "ua"))
        and len(word) > 3
    ):
        groups += 0 if word.endswith(("cious", "tious", "gious", "cience")) else 1
    if word.endswith("e") and not word.endswith(("le", "ee", "ye", "oe", "ie", "ue")) and groups > 1:
        groups -= 1
    elif word.endswith("le") and len(word) > 2 and word[-3] in "aeiouy" and groups > 1:
        groups -= 1
    elif (
        word.endswith("ed")
        and not word.endswith(("ted", "ded"))
        and len(word) > 3
        and groups > 1
        and word[-3] not in "aeiouy"
    ):
        groups -= 1
    elif (
        word.endswith("es")
        and not word.endswith(("ses", "zes", "ces", "ges", "ches", "shes", "xes", "ies", "les"))
        and groups > 1
    ):
        groups -= 1
    return max(groups, 1)


_EMOJI = (
    (0x1F300, 0x1F64F),
    (0x1F680, 0x1F6FF),
    (0x1F7E0, 0x1F7EB),
    (0x1F90C, 0x1F9FF),
    (0x1FA70, 0x1FAFF),
    (0x1F1E6, 0x1F1FF),
    (0x2600, 0x27BF),
)
_SINGLE_EMOJI = frozenset("©®‼⁉™ℹ↔↕↖↗↘↙↩↪⌚⌛⌨⏏▪▫▶◀◻◼◽◾⤴⤵⬅⬆⬇⬛⬜⭐⭕〰〽㊗㊙🀄🃏🅰🅱🅾🅿🆎🈁🈂🈚🈯") | {
    chr(code)
    for code in (*range(0x23E9, 0x23F4), *range(0x23F8, 0x23FB), *range(0x1F191, 0x1F19B), *range(0x1F232, 0x1F23B))
}


def is_emoji(char: str) -> bool:
    """Whether one character is an emoji."""
    return char in _SINGLE_EMOJI or any(low <= ord(char) <= high for low, high in _EMOJI)
