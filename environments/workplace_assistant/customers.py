"""Tools of the customer relationship manager."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from environments.workplace_assistant.arguments import Page, PageSize, Text, day_bounds, listed, page_of, published
from environments.workplace_assistant.database import FORMS, Record, moment
from environments.workplace_assistant.email import check_query
from environments.workplace_assistant.state import Workplace
from gym_servers.tools import Tool

CHANGEABLE = (
    "customer_name",
    "assigned_to_email",
    "customer_email",
    "customer_phone",
    "last_contact_date",
    "product_interest",
    "status",
    "notes",
    "follow_up_by",
)
STATUSES = ("Qualified", "Won", "Lost", "Lead", "Proposal")
PRODUCTS = ("Software", "Hardware", "Services", "Consulting", "Training")
CustomerId = Annotated[Text, Field(description="Id of the customer")]
Name = Annotated[Text, Field(description="Name of the customer")]
Address = Annotated[Text, Field(description="Email address of the customer")]
Assignee = Annotated[Text, Field(description="Address of the colleague who looks after the customer")]
Product = Annotated[Text, Field(description=f"What the customer is interested in, one of {listed(PRODUCTS)}")]
Status = Annotated[Text, Field(description=f"How far it is, one of {listed(STATUSES)}")]


def _day(what: str) -> Any:
    return Field(description=f"{what}, as YYYY-MM-DD")


def _wrong(column: str, value: str) -> str:
    """Why `value` cannot stand in `column`; "" where it can."""
    if column == "status" and value not in STATUSES:
        return f"Status not valid. Please choose from: {listed(STATUSES)}"
    if column == "product_interest" and value not in PRODUCTS:
        return f"Product interest not valid. Please choose from: {listed(PRODUCTS)}"
    if column in ("last_contact_date", "follow_up_by") and moment(value) is None:
        return f"Date not valid for {column}. Format: YYYY-MM-DD"
    return ""


def search_customers(
    state: Workplace,
    *,
    customer_name: Name = None,
    customer_email: Address = None,
    product_interest: Product = None,
    status: Status = None,
    assigned_to_email: Assignee = None,
    last_contact_date_min: Annotated[Text, _day("First day of the last contact")] = None,
    last_contact_date_max: Annotated[Text, _day("Last day of the last contact")] = None,
    follow_up_by_min: Annotated[Text, _day("First day by which to follow up")] = None,
    follow_up_by_max: Annotated[Text, _day("Last day by which to follow up")] = None,
    page: Page = None,
    page_size: PageSize = None,
) -> Any:
    """Finds the customers to which everything that is given applies."""
    contact = (("last_contact_date_min", last_contact_date_min), ("last_contact_date_max", last_contact_date_max))
    follow = (("follow_up_by_min", follow_up_by_min), ("follow_up_by_max", follow_up_by_max))
    wanted = {
        "customer_email": customer_email,
        "product_interest": product_interest,
        "status": status,
        "assigned_to_email": assigned_to_email,
    }
    if not any((customer_name, *wanted.values(), *(value for _, value in contact + follow))):
        return "No search parameters provided. Please provide at least one parameter."
    contacted, followed = day_bounds(*contact), day_bounds(*follow)

    def keep(customer: Record) -> bool:
        return (
            all(value.lower() in (customer[column] or "").lower() for column, value in wanted.items() if value)
            and contacted(customer["last_contact_date"])
            and followed(customer["follow_up_by"])
        )

    found = state.search("customers", check_query(customer_name), ("customer_name",), keep)
    return page_of("customers", found, page, page_size) if found else "No customers found."


def update_customer(
    state: Workplace,
    customer_id: CustomerId = None,
    field: Annotated[Text, Field(description=f"What to change, one of {listed(CHANGEABLE)}")] = None,
    new_value: Annotated[Text, Field(description="What it is to be")] = None,
) -> str:
    """Changes one field of a customer."""
    if not customer_id or not field or not new_value:
        return "Customer ID, field, or new value not provided."
    if field not in CHANGEABLE:
        return f"Field not valid. Please choose from: {listed(CHANGEABLE)}"
    if wrong := _wrong(field, new_value):
        return wrong
    value = new_value.lower() if field in ("assigned_to_email", "customer_email") else new_value
    updated = state.update("customers", customer_id, field, value)
    return "Customer updated successfully." if updated else "Customer not found."


def add_customer(
    state: Workplace,
    customer_name: Name = None,
    assigned_to_email: Assignee = None,
    status: Status = None,
    *,
    customer_email: Address = None,
    customer_phone: Annotated[Text, Field(description="Phone number of the customer")] = None,
    last_contact_date: Annotated[Text, _day("When the customer was last spoken to")] = None,
    product_interest: Product = None,
    notes: Annotated[Text, Field(description="What else there is to say")] = None,
    follow_up_by: Annotated[Text, _day("When to get in touch again")] = None,
) -> str:
    """Enters a new customer and answers the id."""
    if not customer_name or not assigned_to_email or not status:
        return "Please provide all required fields: customer_name, assigned_to_email, status."
    customer: Record = {
        "assigned_to_email": assigned_to_email.lower(),
        "customer_name": customer_name,
        "customer_email": customer_email.lower() if customer_email is not None else None,
        "customer_phone": customer_phone,
        "last_contact_date": last_contact_date,
        "product_interest": product_interest,
        "status": status,
        "follow_up_by": follow_up_by,
        "notes": notes or "",
    }
    for column, value in customer.items():
        if value and (wrong := _wrong(column, value)):
            return wrong
    return state.make("customers", customer)


def delete_customer(state: Workplace, customer_id: CustomerId = None) -> str:
    """Removes a customer."""
    if not customer_id:
        return "Customer ID not provided."
    return "Customer deleted successfully." if state.delete("customers", customer_id) else "Customer not found."


TOOLS: list[Tool] = [
    published("customer_relationship_manager", search_customers, read_only=True),
    *(
        published("customer_relationship_manager", change)
        for change in (update_customer, add_customer, delete_customer)
    ),
]
assert set(CHANGEABLE) == set(FORMS["customers"].columns[1:])
