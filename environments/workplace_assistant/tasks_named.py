"""Tasks of one call whose request names every value: what remains is to call the right tool."""

from __future__ import annotations

from collections.abc import Callable

from environments.workplace_assistant.analytics import PLOTS, VALUES
from environments.workplace_assistant.company import address
from environments.workplace_assistant.customers import PRODUCTS, STATUSES
from environments.workplace_assistant.making import (
    CLIENTS,
    EVENT_NAMES,
    SUBJECTS,
    TASK_NAMES,
    TEXTS,
    Task,
    World,
)
from environments.workplace_assistant.projects import BOARDS, LISTS


def send(w: World) -> Task:
    to, subject, body = address(w.person()), w.of(SUBJECTS), w.of(TEXTS)
    said = w.say(
        "send an email to {to} with the subject '{subject}' and the text '{body}'",
        "write to {to}. Subject: '{subject}'. Text: '{body}'",
        "email {to}, subject '{subject}', saying '{body}'",
        to=to,
        subject=subject,
        body=body,
    )
    return Task("email", said, [("email_send_email", {"recipient": to, "subject": subject, "body": body})])


def delete_email(w: World) -> Task:
    key = w.one("emails")["email_id"]
    said = w.say("delete the email with the id {key}", "remove email {key}", "get rid of email number {key}", key=key)
    return Task("email", said, [("email_delete_email", {"email_id": key})])


def reply(w: World) -> Task:
    key, body = w.one("emails")["email_id"], w.of(TEXTS)
    said = w.say(
        "reply to email {key} with '{body}'", "answer the email with the id {key}: '{body}'", key=key, body=body
    )
    return Task("email", said, [("email_reply_email", {"email_id": key, "body": body})])


def forward(w: World) -> Task:
    key, to = w.one("emails")["email_id"], address(w.person())
    said = w.say("forward email {key} to {to}", "pass the email with the id {key} on to {to}", key=key, to=to)
    return Task("email", said, [("email_forward_email", {"email_id": key, "recipient": to})])


def create_event(w: World) -> Task:
    name, who, start = w.of(EVENT_NAMES), address(w.person()), w.start()
    duration = w.r.choice(["30", "60", "90"])
    said = w.say(
        "create an event called '{name}' with {who} at {start} for {duration} minutes",
        "put '{name}' with {who} into the calendar, starting {start}, {duration} minutes long",
        name=name,
        who=who,
        start=start,
        duration=duration,
    )
    event = {"event_name": name, "participant_email": who, "event_start": start, "duration": duration}
    return Task("calendar", said, [("calendar_create_event", event)])


def delete_event(w: World) -> Task:
    key = w.one("events")["event_id"]
    said = w.say(
        "delete the event with the id {key}", "cancel event {key}", "take event {key} off the calendar", key=key
    )
    return Task("calendar", said, [("calendar_delete_event", {"event_id": key})])


def rename_event(w: World) -> Task:
    key, name = w.one("events")["event_id"], w.of(EVENT_NAMES)
    said = w.say(
        "rename event {key} to '{name}'", "change the event_name of event {key} to '{name}'", key=key, name=name
    )
    return Task(
        "calendar", said, [("calendar_update_event", {"event_id": key, "field": "event_name", "new_value": name})]
    )


def plot(w: World) -> Task:
    low, high = w.day(-75, -35), w.day(-30, -1)
    value, kind = w.r.choice(VALUES), w.r.choice(PLOTS)
    said = w.say(
        "make a {kind} plot of {value} from {low} to {high}",
        "plot {value} between {low} and {high} as a {kind} plot",
        kind=kind,
        value=value,
        low=low,
        high=high,
    )
    asked = {"time_min": str(low), "time_max": str(high), "value_to_plot": value, "plot_type": kind}
    return Task("analytics", said, [("analytics_create_plot", asked)])


def create_task(w: World) -> Task:
    name, who, due = w.of(TASK_NAMES), address(w.person()), str(w.day(1, 28))
    board, where = w.r.choice(BOARDS), w.r.choice(LISTS)
    said = w.say(
        "create a task '{name}' for {who}, due {due}, on the list '{where}' of the board '{board}'",
        "add '{name}' to '{where}' on the '{board}' board, assigned to {who} and due {due}",
        name=name,
        who=who,
        due=due,
        board=board,
        where=where,
    )
    task = {"task_name": name, "assigned_to_email": who, "list_name": where, "due_date": due, "board": board}
    return Task("project_management", said, [("project_management_create_task", task)])


def delete_task(w: World) -> Task:
    key = w.one("tasks")["task_id"]
    said = w.say("delete the task with the id {key}", "remove task {key}", "drop task {key} from the board", key=key)
    return Task("project_management", said, [("project_management_delete_task", {"task_id": key})])


def move_task(w: World) -> Task:
    task = w.one("tasks")
    where = w.other(LISTS, task["list_name"])
    said = w.say(
        "move task {key} to '{to}'", "set the list_name of task {key} to '{to}'", key=task["task_id"], to=where
    )
    change = {"task_id": task["task_id"], "field": "list_name", "new_value": where}
    return Task("project_management", said, [("project_management_update_task", change)])


def set_status(w: World) -> Task:
    customer = w.one("customers")
    key, status = customer["customer_id"], w.other(STATUSES, customer["status"])
    said = w.say("set the status of customer {key} to '{to}'", "mark customer {key} as '{to}'", key=key, to=status)
    change = {"customer_id": key, "field": "status", "new_value": status}
    return Task("customer_relationship_manager", said, [("customer_relationship_manager_update_customer", change)])


def delete_customer(w: World) -> Task:
    key = w.one("customers")["customer_id"]
    said = w.say("delete the customer with the id {key}", "remove customer {key} from our records", key=key)
    return Task(
        "customer_relationship_manager", said, [("customer_relationship_manager_delete_customer", {"customer_id": key})]
    )


def add_customer(w: World) -> Task:
    name, who, status, product = w.of(CLIENTS), address(w.person()), w.r.choice(STATUSES), w.r.choice(PRODUCTS)
    said = w.say(
        "add a customer '{name}' for {who} with the status '{status}' and the product interest '{product}'",
        "enter '{name}' as a new customer: assigned to {who}, status '{status}', product interest '{product}'",
        name=name,
        who=who,
        status=status,
        product=product,
    )
    customer = {"customer_name": name, "assigned_to_email": who, "status": status, "product_interest": product}
    return Task("customer_relationship_manager", said, [("customer_relationship_manager_add_customer", customer)])


NAMED: tuple[Callable[[World], Task], ...] = (
    *(delete_email, delete_event, delete_task, delete_customer, reply, forward, rename_event),
    *(move_task, set_status, send, plot, create_event, create_task, add_customer),
)
"""The shortest calls first."""
