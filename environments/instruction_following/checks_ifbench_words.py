"""Checks of IFBench that count and compare words and sentences. Each is linear in the text."""

from __future__ import annotations

import itertools
import re
from collections import Counter

from environments.instruction_following import kwargs as kind
from environments.instruction_following.checks_ifeval import whole
from environments.instruction_following.kwargs import Instruction
from environments.instruction_following.lexicon import (
    CONJUNCTIONS,
    PERSON_NAMES,
    PRONOUNS,
    STOP_WORDS,
    starts_like_verb,
    syllables,
)
from environments.instruction_following.text import (
    NO_PUNCTUATION,
    STRIPPED,
    bare_words,
    sentences,
    tokens,
    word_tokens,
    words,
)


def word_count_range(text: str, min_words: int, max_words: int) -> bool:
    return min_words <= len(words(text)) <= max_words


def unique_word_count(text: str, N: int) -> bool:
    """At least N different words."""
    return len({word.strip(STRIPPED) for word in text.lower().split()}) >= N


def stop_words(text: str, percentage: float) -> bool:
    """At most so many per cent of the words are stop words."""
    found = words(text)
    stops = sum(1 for word in found if word.lower() in STOP_WORDS)
    return bool(found) and 100 * stops / len(found) <= percentage


def _ends(text: str) -> Counter[str]:
    """The marks that end sentences; a closing quote or bracket after the mark is not looked at."""
    return Counter(sentence.rstrip("\"'”’)]}»")[-1:] for sentence in sentences(text))


def sentence_type(text: str) -> bool:
    """Twice as many sentences end in a dot as in a question mark, and one does."""
    ends = _ends(text)
    return ends["."] == 2 * ends["?"] > 0


def sentence_balance(text: str) -> bool:
    """As many sentences end in a dot as in a question mark as in an exclamation mark, at least one each."""
    ends = _ends(text)
    return ends["."] == ends["?"] == ends["!"] > 0


def conjunctions(text: str, small_n: int) -> bool:
    """So many different coordinating conjunctions; a capital or a mark beside it makes another."""
    return len({word for word in text.split() if word.strip(STRIPPED).lower() in CONJUNCTIONS}) >= small_n


def person_names(text: str, N: int) -> bool:
    """At least N different names of the list."""
    return len(PERSON_NAMES.intersection(words(text))) >= N


def overlap(text: str, reference_text: str, percentage: float) -> bool:
    """Of the text's different triples of words, that share (give or take 2) is in the reference."""
    found, reference = _triples(text), _triples(reference_text)
    return bool(found) and abs(100 * len(found & reference) / len(found) - percentage) <= 2


def _triples(text: str) -> set[tuple[str, str, str]]:
    found = tokens(text)
    return set(zip(found, found[1:], found[2:], strict=False))


def numbers(text: str, N: int) -> bool:
    """Exactly N runs of digits once the punctuation is gone."""
    return len(re.findall(r"\d+", text.translate(NO_PUNCTUATION))) == N


def alphabet(text: str) -> bool:
    """Each word begins with the letter after its predecessor's, `a` after `z`."""
    initials = [word[0] for word in bare_words(text)]
    if not initials or not "a" <= initials[0] <= "z":
        return False
    first = ord(initials[0]) - 97
    return all(initial == chr(97 + (first + index) % 26) for index, initial in enumerate(initials))


def vowel(text: str) -> bool:
    """One paragraph, with at most three of the five vowels."""
    body = text.strip()
    return "\n" not in body and len(set(body.lower()) & set("aeiou")) <= 3


def consonants(text: str) -> bool:
    """Every word has two consonants side by side."""
    return all(re.search("[b-df-hj-np-tv-z]{2}", word) for word in text.lower().split())


def alliteration_increment(text: str) -> bool:
    """Each sentence has more words in runs of one first letter than the sentence before."""
    previous = -1
    found = sentences(text)
    for sentence in found:
        initials = [bare[0] for word in sentence.lower().split() if (bare := word.lstrip(STRIPPED))]
        same = [first == second for first, second in itertools.pairwise(initials)]
        in_runs = sum(1 if index and same[index - 1] else 2 for index, alike in enumerate(same) if alike)
        if in_runs <= previous:
            return False
        previous = in_runs
    return len(found) >= 2


def palindrome(text: str) -> bool:
    """At least ten words of five letters or more that read the same backwards."""
    return sum(1 for word in bare_words(text) if len(word) >= 5 and word == word[::-1]) >= 10


_PRIMES = frozenset(n for n in range(2, 98) if all(n % divisor for divisor in range(2, n)))


def prime_lengths(text: str) -> bool:
    """Every word's length, marks aside, is a prime."""
    return all(len(word) in _PRIMES for word in bare_words(text))


def sentence_words(text: str) -> bool:
    """Three sentences of equal length in characters, no word twice."""
    found = sentences(text)
    bare = bare_words(" ".join(found))
    return len(found) == 3 and len({len(sentence) for sentence in found}) == 1 and len(bare) == len(set(bare))


_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


def words_japanese(text: str, N: int) -> bool:
    """Every N-th word has a Japanese character, unless it is a number or only marks."""
    every = [word.strip(STRIPPED) for word in text.split()[N - 1 :: N]]
    return all(not word or word.isdigit() or _JAPANESE.search(word) for word in every)


def start_verb(text: str) -> bool:
    """The first word is a verb."""
    return starts_like_verb(tokens(text.lstrip()[:200]))


def repeats(text: str, small_n: int) -> bool:
    """No word occurs more often than that."""
    return max(Counter(bare_words(text)).values(), default=0) <= small_n


def keyword(text: str, word: str, N: int) -> bool:
    """The N-th sentence has the word, as a whole word in any case."""
    found = sentences(text)
    return len(found) >= N and whole(word).search(found[N - 1]) is not None


def pronouns(text: str, N: int) -> bool:
    """At least N pronouns, each time counted."""
    return sum(1 for token in tokens(text.lower().replace("/", " ")) if token in PRONOUNS) >= N


def odd_even_syllables(text: str) -> bool:
    """Words of an odd and of an even number of syllables take turns."""
    odd = [syllables(word) % 2 for word in bare_words(text)]
    return all(first != second for first, second in itertools.pairwise(odd))


def last_first(text: str) -> bool:
    """Each sentence begins with the last word of the one before."""
    found = sentences(text)
    for sentence, following in itertools.pairwise(found):
        last, first = sentence.rstrip(STRIPPED).split(), following.lstrip(STRIPPED).split()
        if not last or not first or last[-1].lower() != first[0].lower():
            return False
    return True


def paragraph_last_first(text: str) -> bool:
    """Each line begins and ends with the same word."""
    lines = [line.lower().strip().strip(STRIPPED).split() for line in text.split("\n")]
    return all(line[0] == line[-1] for line in lines if line)


def increment(text: str, small_n: int) -> bool:
    """Each sentence has exactly so many words more than the one before."""
    lengths = [len(bare_words(sentence)) for sentence in sentences(text)]
    return len(lengths) >= 2 and all(second == first + small_n for first, second in itertools.pairwise(lengths))


def no_consecutive(text: str) -> bool:
    """No two words in a row begin with the same letter."""
    initials = [word[0] for word in bare_words(text)]
    return all(first != second for first, second in itertools.pairwise(initials))


_TIMES = {"keyword1": 1, "keyword2": 2, "keyword3": 3, "keyword4": 5, "keyword5": 7}


def keywords_multiple(text: str, **keywords: str) -> bool:
    """The five keywords, whole words, exactly 1, 2, 3, 5 and 7 times."""
    return all(len(whole(keywords[name]).findall(text)) == times for name, times in _TIMES.items())


def keywords_specific_position(text: str, keyword: str, n: int, m: int) -> bool:
    """The keyword, in any case, is the m-th word of the n-th sentence."""
    found = sentences(text)
    if len(found) < n:
        return False
    sentence = word_tokens(found[n - 1])
    return len(sentence) >= m and sentence[m - 1].lower() == keyword.lower()


def words_position(text: str, keyword: str) -> bool:
    """The keyword, in any case, is the second word and the last but one."""
    found = word_tokens(text)
    return len(found) >= 2 and found[1].lower() == found[-2].lower() == keyword.lower()


CHECKS: dict[str, Instruction] = {
    "count:word_count_range": Instruction(word_count_range, {"min_words": kind.count, "max_words": kind.count}),
    "count:unique_word_count": Instruction(unique_word_count, {"N": kind.count}),
    "ratio:stop_words": Instruction(stop_words, {"percentage": kind.percentage}),
    "ratio:sentence_type": Instruction(sentence_type),
    "ratio:sentence_balance": Instruction(sentence_balance),
    "count:conjunctions": Instruction(conjunctions, {"small_n": kind.count}),
    "count:person_names": Instruction(person_names, {"N": kind.count}),
    "ratio:overlap": Instruction(overlap, {"reference_text": kind.text, "percentage": kind.percentage}),
    "count:numbers": Instruction(numbers, {"N": kind.count}),
    "words:alphabet": Instruction(alphabet),
    "words:vowel": Instruction(vowel),
    "words:consonants": Instruction(consonants),
    "sentence:alliteration_increment": Instruction(alliteration_increment),
    "words:palindrome": Instruction(palindrome),
    "words:prime_lengths": Instruction(prime_lengths),
    "ratio:sentence_words": Instruction(sentence_words),
    "count:words_japanese": Instruction(words_japanese, {"N": kind.position}),
    "words:start_verb": Instruction(start_verb),
    "words:repeats": Instruction(repeats, {"small_n": kind.count}),
    "sentence:keyword": Instruction(keyword, {"word": kind.word, "N": kind.position}),
    "count:pronouns": Instruction(pronouns, {"N": kind.count}),
    "words:odd_even_syllables": Instruction(odd_even_syllables),
    "words:last_first": Instruction(last_first),
    "words:paragraph_last_first": Instruction(paragraph_last_first),
    "sentence:increment": Instruction(increment, {"small_n": kind.count}),
    "words:no_consecutive": Instruction(no_consecutive),
    "count:keywords_multiple": Instruction(keywords_multiple, {name: kind.word for name in _TIMES}),
    "words:keywords_specific_position": Instruction(
        keywords_specific_position, {"keyword": kind.word, "n": kind.position, "m": kind.position}
    ),
    "words:words_position": Instruction(words_position, {"keyword": kind.word}),
}
