"""Which datasets of reasoning-gym 0.1.25 are scored, and how: every scorer was read, and none of those used executes text.

PLAIN: the package's own scorer compares texts, which `verifier.py` does without it. EXACT: its scorer calls `eval`, or pays for junk
or for the right answer among others, so that ours compares. PACKAGE: its scorer runs, in a worker. EXCLUDED: neither would do, with the reason.
"""

from __future__ import annotations

VERSION = "0.1.25"

PLAIN = frozenset(
    """acre aiw arc_1d base_conversion basic_arithmetic bf binary_alternation caesar_cipher count_bits count_primes course_schedule
    gcd isomorphic_strings largest_island lcm leg_counting letter_counting list_functions mahjong_puzzle maze modulo_grid
    number_filtering number_sequence ransom_note rotate_matrix rotten_oranges simple_equations simple_geometry
    string_manipulation string_splitting string_synthesis syllogism word_sequence_reversal""".split()
)
BOARDS = frozenset("arc_agi binary_matrix n_queens rearc spiral_matrix string_insertion".split())
EXACT = BOARDS | {"bitwise_arithmetic", "game_of_life", "gsm_symbolic", "knights_knaves", "number_sorting"}
PACKAGE = frozenset(
    """ab advanced_geometry calendar_arithmetic chain_sum circuit_logic coin_flip color_cube_rotation complex_arithmetic
    cryptarithm decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships figlet_font fraction_simplification
    futoshiki group_anagrams jugs kakurasu knight_swap letter_jumble manipulate_matrix mini_sudoku
    needle_haystack number_format palindrome_generation palindrome_partitioning path_star pool_matrix power_function
    prime_factorization products quantum_lock rectangle_count self_reference sentence_reordering shortest_path sokoban
    spell_backward sudoku survo time_intervals tower_of_hanoi tsumego word_ladder word_sorting zebra_puzzles""".split()
)
SCORED = PLAIN | EXACT | PACKAGE

_PARSES = "its scorer hands the answer to sympy's parse_expr, which executes it"
_NO_ANSWER = "its tasks come without an answer that could show whether the scorer works"
EXCLUDED = {
    "countdown": _PARSES,
    "puzzle24": _PARSES,
    "simple_integration": _PARSES,
    "intermediate_integration": _PARSES,
    "polynomial_multiplication": _PARSES,
    "polynomial_equations": "its scorer pays in full for no answer where there is no solution",
    "game_of_life_halting": "its scorer pays in full for any text where the answer is not empty, so always",
    "propositional_logic": "its scorer pays in full for a premise that is repeated",
    "boxnet": _NO_ANSWER,
    "graph_color": _NO_ANSWER,
    "rubiks_cube": _NO_ANSWER,
    "rush_hour": _NO_ANSWER,
    "codeio": "its tasks are made by executing code, and are not the same twice",
    "composite": "it stands for other datasets: name those",
}

SLOW = frozenset({"arc_agi", "futoshiki", "knight_swap", "sokoban", "sudoku", "word_ladder", "zebra_puzzles"})
"""Take a quarter of a second to two for a task: generated where they are named."""
FIRST_LEVEL_ONLY = frozenset({"jugs"})
"""Past their first level a task takes minutes to generate."""
SEEDED = frozenset({"acre", "gsm_symbolic", "word_ladder"})
"""Have as many tasks as their configuration says, so that each task is the first one of another seed."""
UNGENERATED = {"list_functions": "its tasks are not the same twice"}
"""Scored, but not generated, with the reason."""
