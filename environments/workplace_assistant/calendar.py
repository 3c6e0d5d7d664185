"""Tools of the calendar."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field

from environments.workplace_assistant.arguments import (
    Page,
    PageSize,
    Text,
    bound,
    is_address,
    listed,
    page_of,
    published,
)
from environments.workplace_assistant.database import FORMS, Record, minutes, moment
from environments.workplace_assistant.email import check_query
from environments.workplace_assistant.state import Workplace
from gym_servers.tools import Tool

FIELDS = FORMS["events"].columns
CHANGEABLE = FIELDS[1:]
SEARCHED = ("event_name", "participant_email")
TIME = "YYYY-MM-DD HH:MM:SS"
EventId = Annotated[Text, Field(description="Id of the event, 8 digits")]
START_WRONG = f"Invalid event_start format. Expected {TIME}."
DURATION_WRONG = "Invalid duration format. Expected a number of minutes."
PARTICIPANT_WRONG = "Invalid participant email address."


def _start(event: Record) -> str:
    return bound("event_start", event["event_start"])


def _end(event: Record) -> str:
    begin, length = moment(event["event_start"]), minutes(event["duration"])
    assert begin is not None and length is not None, event
    return (begin + timedelta(minutes=length)).strftime("%Y-%m-%d %H:%M:%S")


def get_event_information_by_id(
    state: Workplace,
    event_id: EventId = None,
    field: Annotated[Text, Field(description=f"What to tell of it, one of {listed(FIELDS)}")] = None,
) -> Any:
    """Tells one field of an event."""
    if not event_id:
        return "Event ID not provided."
    if not field:
        return "Field not provided."
    event = state.get("events", event_id)
    if event is None:
        return "Event not found."
    if field not in event:
        return f"Invalid field. Available fields are: {', '.join(FIELDS)}"
    return {field: event[field]}


def search_events(
    state: Workplace,
    *,
    query: Annotated[Text, Field(description="Words to look for in the event's name and the participant")] = None,
    time_min: Annotated[Text, Field(description=f"Only events that end then or later, as {TIME}")] = None,
    time_max: Annotated[Text, Field(description=f"Only events that start then or earlier, as {TIME}")] = None,
    page: Page = None,
    page_size: PageSize = None,
) -> Any:
    """Finds the events in which all words of the query stand, the latest first."""
    low, high = bound("time_min", time_min, TIME), bound("time_max", time_max, TIME)

    def keep(event: Record) -> bool:
        return (not low or _end(event) >= low) and (not high or _start(event) <= high)

    found = state.search("events", check_query(query), SEARCHED, keep)
    if not found:
        return "No events found."
    found.sort(key=_start, reverse=True)
    return page_of("events", found, page, page_size)


def create_event(
    state: Workplace,
    event_name: Annotated[Text, Field(description="What the event is called")] = None,
    participant_email: Annotated[Text, Field(description="Address of who takes part")] = None,
    event_start: Annotated[Text, Field(description=f"When it starts, as {TIME}")] = None,
    duration: Annotated[Text, Field(description="How many minutes it takes")] = None,
) -> str:
    """Enters a new event and answers its id."""
    if not event_name:
        return "Event name not provided."
    if not participant_email:
        return "Participant email not provided."
    if not event_start:
        return "Event start not provided."
    if not duration:
        return "Event duration not provided."
    if not is_address(participant_email):
        return PARTICIPANT_WRONG
    if moment(event_start) is None:
        return START_WRONG
    if minutes(duration) is None:
        return DURATION_WRONG
    event = (event_name, participant_email.lower(), event_start, duration)
    return state.make("events", dict(zip(CHANGEABLE, event, strict=True)))


def delete_event(state: Workplace, event_id: EventId = None) -> str:
    """Removes an event."""
    if not event_id:
        return "Event ID not provided."
    return "Event deleted successfully." if state.delete("events", event_id) else "Event not found."


def update_event(
    state: Workplace,
    event_id: EventId = None,
    field: Annotated[Text, Field(description=f"What to change, one of {listed(CHANGEABLE)}")] = None,
    new_value: Annotated[Text, Field(description="What it is to be")] = None,
) -> str:
    """Changes one field of an event."""
    if not event_id or not field or not new_value:
        return "Event ID, field, or new value not provided."
    if field not in CHANGEABLE:
        return f"Invalid field. Available fields are: {', '.join(CHANGEABLE)}"
    if field == "event_start" and moment(new_value) is None:
        return START_WRONG
    if field == "duration" and minutes(new_value) is None:
        return DURATION_WRONG
    if field == "participant_email":
        if not is_address(new_value):
            return PARTICIPANT_WRONG
        new_value = new_value.lower()
    return "Event updated successfully." if state.update("events", event_id, field, new_value) else "Event not found."


TOOLS: list[Tool] = [
    published("calendar", get_event_information_by_id, read_only=True),
    published("calendar", search_events, read_only=True),
    *(published("calendar", change) for change in (create_event, delete_event, update_event)),
]
