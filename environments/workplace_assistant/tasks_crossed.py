"""Tasks across several areas, with conditions and dates that have to be worked out."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

from environments.workplace_assistant.company import address
from environments.workplace_assistant.making import SUBJECTS, TASK_NAMES, TEXTS, Call, Task, World, first_name
from environments.workplace_assistant.tasks_searched import CRM, CUSTOMERS, DIRECTORY, EMAILS, EVENTS, TASKS, Maker

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")


def busy_day(w: World) -> Task:
    """A plot or an email, by how many visits a day had."""
    day = w.day(-70, -1)
    count = Counter(visit.day for visit in w.base.visits)[day]
    limit = count + w.r.choice([-3, -2, -1, 1, 2, 3])
    to, subject, body = address(w.person()), w.of(SUBJECTS), w.of(TEXTS)
    said = w.say(
        "look up how many visits the web site had on {day}. If there were more than {limit}, make a line plot of the total "
        "visits of that day; if not, email {to} with the subject '{subject}' and the text '{body}'",
        day=day.strftime("%d %B"),
        limit=limit,
        to=first_name(to),
        subject=subject,
        body=body,
    )
    if count > limit:
        plot = {"time_min": str(day), "time_max": str(day), "value_to_plot": "total_visits", "plot_type": "line"}
        call: Call = ("analytics_create_plot", plot)
    else:
        call = ("email_send_email", {"recipient": to, "subject": subject, "body": body})
    return Task("multi", said, [call], ("analytics_total_visits_count", DIRECTORY))


def meeting_and_email(w: World) -> Task:
    """A date that is only described, in the calendar and in an email."""
    to, subject, body = address(w.person()), w.of(SUBJECTS), w.of(TEXTS)
    ahead = w.r.randrange(5)
    day = w.now.date() + timedelta(days=7 - w.now.weekday() + ahead)
    hour, duration = w.r.choice([9, 10, 11, 13, 14, 15]), w.r.choice(["30", "60"])
    said = w.say(
        "book '{subject}' with {to} on {weekday} of next week at {hour}:00 for {duration} minutes, and email {to} with "
        "the subject '{subject}' and the text '{body}'",
        subject=subject,
        to=first_name(to),
        weekday=WEEKDAYS[ahead],
        hour=hour,
        duration=duration,
        body=body,
    )
    event = {
        "event_name": subject,
        "participant_email": to,
        "event_start": f"{day} {hour:02}:00:00",
        "duration": duration,
    }
    email = {"recipient": to, "subject": subject, "body": body}
    return Task("multi", said, [("calendar_create_event", event), ("email_send_email", email)], (DIRECTORY,))


def handed_over(w: World) -> Task | None:
    """All of somebody's leads to somebody else, who is told, and gets a task."""
    one = w.one("customers")
    who, status = one["assigned_to_email"], one["status"]
    found = w.records("customers", assigned_to_email=who, status=status)
    if not 1 <= len(found) <= 2:
        return None
    to, subject, body, name = address(w.person(but=who)), w.of(SUBJECTS), w.of(TEXTS), w.of(TASK_NAMES)
    due = w.now.date() + timedelta(days=1)
    said = w.say(
        "give {who}'s customers with the status '{status}' to {to}, create a task '{name}' for {to} in the Backlog of the "
        "Design board that is due tomorrow, and email {to}: subject '{subject}', text '{body}'",
        who=who,
        status=status,
        to=to,
        name=name,
        subject=subject,
        body=body,
    )
    calls: list[Call] = [
        (f"{CRM}_update_customer", {"customer_id": c["customer_id"], "field": "assigned_to_email", "new_value": to})
        for c in found
    ]
    task = {"task_name": name, "assigned_to_email": to, "list_name": "Backlog", "due_date": str(due), "board": "Design"}
    email = {"recipient": to, "subject": subject, "body": body}
    made: list[Call] = [("project_management_create_task", task), ("email_send_email", email)]
    return Task("multi", said, [*calls, *made], (CUSTOMERS,))


def away(w: World) -> Task | None:
    """Everything that somebody has on one day is cancelled, their due tasks pushed back, the last email answered."""
    one = w.one("events")
    who, day = one["participant_email"], one["event_start"][:10]
    if day <= w.base.now[:10]:
        return None
    events = [e for e in w.records("events", participant_email=who) if e["event_start"].startswith(day)]
    tasks = w.records("tasks", assigned_to_email=who, due_date=day)
    emails = w.records("emails", **{"sender/recipient": who})
    if not emails or len(events) + len(tasks) > 2:
        return None
    later, body = str(w.now.date() + timedelta(days=40)), w.of(TEXTS)
    said = w.say(
        "{who} is ill on {day}: delete the events with {who} of that day, move the due date of the tasks of {mail} that are "
        "due on that day to {later}, and reply to the latest email from {who} with '{body}'",
        who=first_name(who),
        mail=who,
        day=day,
        later=later,
        body=body,
    )
    last = max(emails, key=lambda email: email["sent_datetime"])
    calls: list[Call] = [
        *(("calendar_delete_event", {"event_id": event["event_id"]}) for event in events),
        *(
            ("project_management_update_task", {"task_id": t["task_id"], "field": "due_date", "new_value": later})
            for t in tasks
        ),
        ("email_reply_email", {"email_id": last["email_id"], "body": body}),
    ]
    return Task("multi", said, calls, (EVENTS, TASKS, EMAILS))


CROSSED: tuple[Maker, ...] = (busy_day, meeting_and_email, handed_over, away)
