"""The scripted user tells only what is asked for, and goes when it has what it wants; what a model may say as a user."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from environments.banking.simulated import STOP, instructions, messages, read
from environments.banking.user import ASKED, Goal, Script, User
from environments.banking.verifier import BankingRow
from gym_servers.environment import Said, UserTurn

FACTS = {
    "customer_id": "C17",
    "code_word": "maple",
    "date_of_birth": "1980-05-01",
    "card": "the one ending in 4821",
    "merchant": "City Gym",
    "amount": "45.20 dollars",
    "account": "the savings account",
    "target_account": "the current account",
    "address": "9 High Street",
    "limit": "1600",
    "name": "Ann Lee",
}


def user(*more: Goal, **facts: str) -> User:
    goals = [Goal(opening="Please unblock my card.", restated="I want my card unblocked."), *more]
    return User(Script(goals=goals, facts=facts or FACTS))


def values_in(text: str) -> set[str]:
    return {name for name, value in FACTS.items() if value in text}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("What is your customer number?", {"customer_id"}),
        ("Please give me your customer ID and your code word.", {"customer_id", "code_word"}),
        ("I need your password to go on.", {"code_word"}),
        ("Which card is it?", {"card"}),
        ("Could you tell me the last four digits of the card", {"card"}),
        ("When were you born?", {"date_of_birth"}),
        ("May I have your full name and date of birth?", {"name", "date_of_birth"}),
        ("Which transaction is it, and what is the exact amount?", {"merchant", "amount"}),
        ("To which account shall the money go?", {"target_account"}),
        ("Which account would you like to close?", {"account"}),
        ("What is your new address?", {"address"}),
        ("What limit would you like?", {"limit"}),
        ("Thank you. Your code word is right. Which card is it?", {"card"}),
        ("I have checked your customer number.\nWhat is your code word?", {"code_word"}),
        ("WHAT IS YOUR CODE WORD?", {"code_word"}),
    ],
)
def test_what_is_asked_for_is_told_and_nothing_else(asked: str, told: set[str]) -> None:
    turn = user().turn(asked)
    assert (values_in(turn.message), turn.done) == (told, False)


@pytest.mark.parametrize(
    "said",
    [
        "Your customer number and code word are right.",
        "I have the card, the address and the amount.",
        "Hello.",
        "",
        "One moment, please.",
        "How are you today?",
        "Tell me everything you know.",
    ],
)
def test_statements_and_other_questions_get_no_facts(said: str) -> None:
    assert values_in(user().turn(said).message) == set()


def test_what_the_user_does_not_know_it_says_so() -> None:
    turn = user(name="Ann Lee").turn("What are your customer number and your name?")
    assert turn == UserTurn(message="I don't know my customer number. name: Ann Lee.")


def test_a_new_card_is_wanted_only_where_the_script_says_so() -> None:
    assert user().turn("Do you want a replacement?").message == "No new card, thank you."
    assert user(new_card="Yes, I want one.").turn("Do you want a replacement?").message == "Yes, I want one."


def test_a_question_whether_to_go_on_gets_a_yes() -> None:
    assert user().turn("I will unblock your card now. Shall I go ahead?") == UserTurn(message="Yes, please.")
    assert user().turn("Can you confirm that?").message == "Yes, please."


@pytest.mark.parametrize(
    "news",
    [
        "Your card is unblocked.",
        "I am sorry, I cannot do that.",
        "Is there anything else I can do for you?",
        "Done. Would you like anything else?",
        "Unfortunately your request is refused because of our policy.",
    ],
)
def test_news_leads_to_the_next_goal_and_then_to_the_goodbye(news: str) -> None:
    one = user(Goal(opening="And close my account.", facts={"account": "the old one"}))
    assert one.turn(None) == UserTurn(message="Please unblock my card.")
    assert one.turn(news) == UserTurn(message="And close my account.")
    assert one.turn("Which account?").message == "account: the old one."  # the goal's own facts come first
    assert one.turn(news) == UserTurn(message="No, that is all. Goodbye.", done=True)


def test_a_question_is_answered_before_the_next_goal() -> None:
    one = user(Goal(opening="And close my account."))
    assert values_in(one.turn("Your card is unblocked. What is your code word?").message) == {"code_word"}
    assert one.goal == 0


def test_what_is_not_understood_is_said_again_twice_and_then_the_user_goes() -> None:
    one = user()
    assert one.turn("Hm.") == UserTurn(message="I don't understand. I want my card unblocked.")
    assert not one.turn("Hm.").done
    assert one.turn("Hm.").done


def test_phrases_are_drawn_by_the_seed() -> None:
    said = set()
    for seed in range(20):
        script = Script(
            goals=[Goal(opening="?")], facts=FACTS, phrases={"known": ["A {value}", "B {value}"]}, seed=seed
        )
        answers = {User(script).turn("Your code word?").message for _ in range(3)}
        assert len(answers) == 1
        said |= answers
    assert said == {"A maple", "B maple"}


@given(st.lists(st.one_of(st.none(), st.text(max_size=40), st.sampled_from(sorted(ASKED))), max_size=15))
def test_the_user_always_says_something_and_the_same_again(heard: list[str | None]) -> None:
    one, two = user(), user()
    for message in heard:
        turn = one.turn(message)
        assert turn.message and two.turn(message) == turn
        if turn.done:
            break


@pytest.mark.parametrize(
    "piece", ["which account ", "where ", "?", "a", "what is ", ". ", "please ", "to which account "]
)
def test_long_messages_take_linear_time(piece: str) -> None:
    began = time.process_time()
    user().turn(piece * 20_000)
    assert time.process_time() - began < 20


# -- a model as the user ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "opening", "turn"),
    [
        ("  Hello, I need help. ", True, UserTurn(message="Hello, I need help.")),
        ("My code word is maple.", False, UserTurn(message="My code word is maple.")),
        (f"Thanks, bye. {STOP}", False, UserTurn(message="Thanks, bye.", done=True)),
        (STOP, False, UserTurn(message="", done=True)),
        (STOP, True, None),
        (f"Bye {STOP}", True, None),
        ("", False, None),
        (" \n", False, None),
        ("Agent: your card is unblocked.", False, None),
        ("Thanks.\n**Assistant**: is there more?", False, None),
        ("<tool_call>\n<function=unblock_card>", False, None),
        ("ok <|im_end|>", False, None),
        ("word " * 1000, False, None),
        ("My agent told me: wait.", False, UserTurn(message="My agent told me: wait.")),
    ],
)
def test_what_a_model_may_say_as_a_user(reply: str, opening: bool, turn: UserTurn | None) -> None:
    assert read(reply, opening) == turn


def test_the_model_hears_the_desk_and_its_scenario() -> None:
    scenario = {
        "customer_persona": "in a hurry",
        "reason_for_contact": "unblock a card",
        "customer_details": "code word maple",
        "unknown_info": None,
    }
    customers = {
        "C1": {
            "name": "A",
            "date_of_birth": "1980-01-01",
            "code_word": "x",
            "street": "s",
            "city": "c",
            "postcode": "p",
        }
    }
    row = BankingRow.model_validate(
        {
            "customer_scenario": scenario,
            "database": {"customers": customers},
            "ground_truth": [{"name": "record_refusal", "arguments": {"reason_code": "too_late"}}],
        }
    )
    told = instructions(row)
    assert "in a hurry" in told and "unblock a card" in told and "maple" in told and "None" not in told and STOP in told
    said = [Said(role="user", content="Hi"), Said(role="assistant", content="Code word? <|im_end|>")]
    heard = messages(told, said)
    assert [one["role"] for one in heard] == ["system", "user", "assistant", "user"]
    assert heard[2]["content"] == "Hi" and "<|" not in heard[3]["content"]
