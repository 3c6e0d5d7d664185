"""Tools of the mailbox, and of the company's directory. Every change is one: what is sent, answered or forwarded is a new email."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from environments.workplace_assistant.arguments import (
    Page,
    PageSize,
    Text,
    day_bounds,
    is_address,
    listed,
    page_of,
    published,
)
from environments.workplace_assistant.database import FORMS
from environments.workplace_assistant.state import MAX_QUERY, Workplace
from gym_servers.tools import Tool, ToolRefused

FIELDS = FORMS["emails"].columns
SEARCHED = ("subject", "body", "sender/recipient")
EmailId = Annotated[Text, Field(description="Id of the email")]
Recipient = Annotated[Text, Field(description="Address to which it goes")]
Body = Annotated[Text, Field(description="Text of the email")]
ADDRESS_WRONG = "Invalid recipient email address."


def check_query(query: str | None) -> str:
    """The text of a search. Raises ToolRefused where it is too long."""
    if query is not None and len(query) > MAX_QUERY:
        raise ToolRefused(f"a search takes at most {MAX_QUERY} characters: give the few words that matter")
    return query or ""


def find_email_address(
    state: Workplace, *, name: Annotated[Text, Field(description="A name or a part of one")] = None
) -> Any:
    """Lists the company's email addresses that contain a name, in upper or lower case."""
    words = check_query(name).lower().split()
    if not words:
        return "Name not provided."
    return [address for address in state.base.people if all(word in address.lower() for word in words)]


def get_email_information_by_id(
    state: Workplace,
    email_id: EmailId = None,
    field: Annotated[Text, Field(description=f"What to tell of it, one of {listed(FIELDS)}")] = None,
) -> Any:
    """Tells one field of an email."""
    if not email_id:
        return "Email ID not provided."
    if not field:
        return "Field not provided."
    email = state.get("emails", email_id)
    if email is None:
        return "Email not found."
    if field not in email:
        return f"Invalid field. Available fields are: {', '.join(FIELDS)}"
    return {field: email[field]}


def search_emails(
    state: Workplace,
    *,
    query: Annotated[Text, Field(description="Words to look for in subject, text and address")] = None,
    date_min: Annotated[Text, Field(description="First day, inclusive, as YYYY-MM-DD")] = None,
    date_max: Annotated[Text, Field(description="Last day, inclusive, as YYYY-MM-DD")] = None,
    page: Page = None,
    page_size: PageSize = None,
) -> Any:
    """Finds the emails in which all words of the query stand, the latest first."""
    within = day_bounds(("date_min", date_min), ("date_max", date_max))
    found = state.search("emails", check_query(query), SEARCHED, lambda email: within(email["sent_datetime"]))
    if not found:
        return "No emails found."
    found.sort(key=lambda email: email["sent_datetime"] or "", reverse=True)
    return page_of("emails", found, page, page_size)


def _send(state: Workplace, recipient: str, subject: str, body: str) -> None:
    email = ("outbox", recipient.lower(), subject, state.base.now, body)
    state.make("emails", dict(zip(FIELDS[1:], email, strict=True)), pad=False)


def send_email(
    state: Workplace,
    recipient: Recipient = None,
    subject: Annotated[Text, Field(description="Subject of the email")] = None,
    body: Body = None,
) -> str:
    """Sends a new email."""
    if not recipient or not subject or not body:
        return "Recipient, subject, or body not provided."
    if not is_address(recipient):
        return ADDRESS_WRONG
    _send(state, recipient, subject, body)
    return "Email sent successfully."


def delete_email(state: Workplace, email_id: EmailId = None) -> str:
    """Deletes an email."""
    if not email_id:
        return "Email ID not provided."
    return "Email deleted successfully." if state.delete("emails", email_id) else "Email not found."


def forward_email(state: Workplace, email_id: EmailId = None, recipient: Recipient = None) -> str:
    """Sends an email on to somebody else."""
    if not email_id or not recipient:
        return "Email ID or recipient not provided."
    if not is_address(recipient):
        return ADDRESS_WRONG
    email = state.get("emails", email_id)
    if email is None:
        return "Email not found."
    _send(state, recipient, f"FW: {email['subject']}", email["body"] or "")
    return "Email forwarded successfully."


def reply_email(state: Workplace, email_id: EmailId = None, body: Body = None) -> str:
    """Answers an email: to its other side, under its subject."""
    if not email_id or not body:
        return "Email ID or body not provided."
    email = state.get("emails", email_id)
    if email is None:
        return "Email not found."
    _send(state, email["sender/recipient"] or "", email["subject"] or "", body)
    return "Email replied successfully."


TOOLS: list[Tool] = [
    published("company_directory", find_email_address, read_only=True),
    published("email", get_email_information_by_id, read_only=True),
    published("email", search_emails, read_only=True),
    *(published("email", change) for change in (send_email, delete_email, forward_email, reply_email)),
]
