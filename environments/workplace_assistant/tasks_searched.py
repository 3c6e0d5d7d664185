"""Tasks that need a look first: one record that is described rather than named, or all records of a kind.

A maker returns None where its draw describes no record, more than one, or too many: the next draw is tried.
"""

from __future__ import annotations

from collections.abc import Callable

from environments.workplace_assistant.company import address
from environments.workplace_assistant.customers import STATUSES
from environments.workplace_assistant.making import EVENT_NAMES, TEXTS, Call, Task, World, first_name, full_name
from environments.workplace_assistant.projects import LISTS

DIRECTORY = "company_directory_find_email_address"
EMAILS, EVENTS = "email_search_emails", "calendar_search_events"
TASKS, CUSTOMERS = "project_management_search_tasks", "customer_relationship_manager_search_customers"
CRM = "customer_relationship_manager"
Maker = Callable[[World], Task | None]


def last_email_answered(w: World) -> Task:
    who, body = w.one("emails")["sender/recipient"], w.of(TEXTS)
    email = max(w.records("emails", **{"sender/recipient": who}), key=lambda email: email["sent_datetime"])
    said = w.say(
        "reply to the latest email from {who} with '{body}'",
        "answer {who}'s last email: '{body}'",
        who=w.r.choice([first_name(who), full_name(who), who]),
        body=body,
    )
    return Task("email", said, [("email_reply_email", {"email_id": email["email_id"], "body": body})], (EMAILS,))


def email_forwarded(w: World) -> Task | None:
    email = w.one("emails")
    who, subject = email["sender/recipient"], email["subject"]
    if len(w.records("emails", subject=subject, **{"sender/recipient": who})) > 1:
        return None
    to = address(w.person(but=who))
    said = w.say(
        "forward {who}'s email about '{subject}' to {to}",
        "send the email '{subject}' that {who} wrote on to {to}",
        who=first_name(who),
        subject=subject,
        to=first_name(to),
    )
    call: Call = ("email_forward_email", {"email_id": email["email_id"], "recipient": to})
    return Task("email", said, [call], (EMAILS, DIRECTORY))


def next_event(w: World) -> Task | None:
    who = w.one("events")["participant_email"]
    ahead = [event for event in w.records("events", participant_email=who) if event["event_start"] > w.base.now]
    starts = sorted(event["event_start"] for event in ahead)
    if not ahead or starts.count(starts[0]) > 1:
        return None
    event = min(ahead, key=lambda event: event["event_start"])
    if w.r.random() < 0.5:
        said = w.say("cancel my next event with {who}", "delete the next meeting with {who}", who=first_name(who))
        return Task("calendar", said, [("calendar_delete_event", {"event_id": event["event_id"]})], (EVENTS,))
    name = w.of(EVENT_NAMES)
    said = w.say("rename my next event with {who} to '{name}'", who=first_name(who), name=name)
    change = {"event_id": event["event_id"], "field": "event_name", "new_value": name}
    return Task("calendar", said, [("calendar_update_event", change)], (EVENTS,))


def task_moved(w: World) -> Task | None:
    task = w.one("tasks")
    who, name = task["assigned_to_email"], task["task_name"]
    if len(w.records("tasks", assigned_to_email=who, task_name=name)) > 1:
        return None
    where = w.other(LISTS, task["list_name"])
    said = w.say(
        "move {who}'s task '{name}' to '{to}'",
        "put the task '{name}' of {who} on the list '{to}'",
        who=who,
        name=name,
        to=where,
    )
    change = {"task_id": task["task_id"], "field": "list_name", "new_value": where}
    return Task("project_management", said, [("project_management_update_task", change)], (TASKS,))


def customer_passed_on(w: World) -> Task:
    customer = w.one("customers")
    to = address(w.person(but=customer["assigned_to_email"]))
    said = w.say(
        "assign the customer {name} to {to}",
        "{to} takes care of our customer {name} from now on. Enter that, please",
        name=customer["customer_name"],
        to=to,
    )
    change = {"customer_id": customer["customer_id"], "field": "assigned_to_email", "new_value": to}
    return Task(CRM, said, [(f"{CRM}_update_customer", change)], (CUSTOMERS,))


def customers_of_a_kind(w: World) -> Task | None:
    one = w.one("customers")
    who, status = one["assigned_to_email"], one["status"]
    found = w.records("customers", assigned_to_email=who, status=status)
    if not 2 <= len(found) <= 4:
        return None
    keys = [customer["customer_id"] for customer in found]
    if w.r.random() < 0.4:
        said = w.say("delete all of {who}'s customers with the status '{status}'", who=first_name(who), status=status)
        calls: list[Call] = [(f"{CRM}_delete_customer", {"customer_id": key}) for key in keys]
        return Task(CRM, said, calls, (DIRECTORY, CUSTOMERS))
    field, to = "status", w.other(STATUSES, status)
    said = w.say(
        "mark every customer of {who} that is at '{status}' as '{to}'", who=first_name(who), status=status, to=to
    )
    if w.r.random() < 0.5:
        field, to = "assigned_to_email", address(w.person(but=who))
        said = w.say(
            "{who} is leaving. Give all of their customers with the status '{status}' to {to}",
            who=full_name(who),
            status=status,
            to=to,
        )
    changes = [{"customer_id": key, "field": field, "new_value": to} for key in keys]
    return Task(CRM, said, [(f"{CRM}_update_customer", change) for change in changes], (DIRECTORY, CUSTOMERS))


def overdue_tasks(w: World) -> Task | None:
    one = w.one("tasks")
    who, where = one["assigned_to_email"], one["list_name"]
    today = w.base.now[:10]
    late = [t for t in w.records("tasks", assigned_to_email=who, list_name=where) if t["due_date"] < today]
    if not 1 <= len(late) <= 4 or where == "Completed":
        return None
    said = w.say(
        "move all of {who}'s overdue tasks on the list '{where}' to 'Completed'",
        "{who} has finished every task in '{where}' that was due before today. Set them to 'Completed'",
        who=first_name(who),
        where=where,
    )
    changes = [{"task_id": task["task_id"], "field": "list_name", "new_value": "Completed"} for task in late]
    calls: list[Call] = [("project_management_update_task", change) for change in changes]
    return Task("project_management", said, calls, (DIRECTORY, TASKS))


def events_of_a_day(w: World) -> Task | None:
    one = w.one("events")
    who, day = one["participant_email"], one["event_start"][:10]
    ahead = [e for e in w.records("events", participant_email=who) if e["event_start"][:10] >= day > w.base.now[:10]]
    if not 2 <= len(ahead) <= 4:
        return None
    said = w.say(
        "cancel everything with {who} from {day} on",
        "{who} is away from {day} on. Delete all events with {who} from that day",
        who=first_name(who),
        day=day,
    )
    calls: list[Call] = [("calendar_delete_event", {"event_id": event["event_id"]}) for event in ahead]
    return Task("calendar", said, calls, (EVENTS,))


def emails_about(w: World) -> Task | None:
    one = w.one("emails")
    who, topic = one["sender/recipient"], one["subject"].split()[-1]
    found = [e for e in w.records("emails", **{"sender/recipient": who}) if topic in e["subject"]]
    mentioned = [e for e in w.records("emails", **{"sender/recipient": who}) if topic.lower() in str(e).lower()]
    if not 2 <= len(found) <= 4 or len(mentioned) != len(found):
        return None
    said = w.say("delete all emails from {who} whose subject has the word '{topic}'", who=full_name(who), topic=topic)
    return Task("email", said, [("email_delete_email", {"email_id": e["email_id"]}) for e in found], (EMAILS,))


ONE: tuple[Maker, ...] = (last_email_answered, email_forwarded, next_event, task_moved, customer_passed_on)
SEVERAL: tuple[Maker, ...] = (customers_of_a_kind, overdue_tasks, events_of_a_day, emails_about)
