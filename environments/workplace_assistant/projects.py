"""Tools of project management: tasks on boards."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from environments.workplace_assistant.arguments import Text, listed, published
from environments.workplace_assistant.database import FORMS, Record, moment
from environments.workplace_assistant.email import check_query
from environments.workplace_assistant.state import Workplace
from gym_servers.tools import Tool

FIELDS = FORMS["tasks"].columns
CHANGEABLE = FIELDS[1:]
LISTS = ("Backlog", "In Progress", "In Review", "Completed")
BOARDS = ("Back end", "Front end", "Design")
TaskId = Annotated[Text, Field(description="Id of the task, 8 digits")]
Name = Annotated[Text, Field(description="What the task is called")]
Assignee = Annotated[Text, Field(description="Address of who the task is for")]
Due = Annotated[Text, Field(description="When it is due, as YYYY-MM-DD")]


def _wrong(state: Workplace, column: str, value: str) -> str:
    """Why `value` cannot stand in `column`; "" where it can."""
    if column == "assigned_to_email":
        people = {address.lower() for address in state.base.people}
        if value.lower() not in people:
            return "Assignee email not valid. Please choose from the list of team members."
    if column == "list_name" and value not in LISTS:
        return f"List not valid. Please choose from: {listed(LISTS)}."
    if column == "board" and value not in BOARDS:
        return f"Board not valid. Please choose from: {listed(BOARDS)}."
    if column == "due_date" and moment(value) is None:
        return "Due date not valid. Format: YYYY-MM-DD."
    return ""


def get_task_information_by_id(
    state: Workplace,
    task_id: TaskId = None,
    field: Annotated[Text, Field(description=f"What to tell of it, one of {listed(FIELDS)}")] = None,
) -> Any:
    """Tells one field of a task."""
    if not task_id:
        return "Task ID not provided."
    if not field:
        return "Field not provided."
    task = state.get("tasks", task_id)
    if task is None:
        return "Task not found."
    if field not in task:
        return f"Field not found. Available fields are: {', '.join(FIELDS)}"
    return {field: task[field]}


def search_tasks(
    state: Workplace,
    *,
    task_name: Annotated[Text, Field(description="Words of the task's name")] = None,
    assigned_to_email: Assignee = None,
    list_name: Annotated[Text, Field(description="On which list it is")] = None,
    due_date: Due = None,
    board: Annotated[Text, Field(description="On which board it is")] = None,
) -> Any:
    """Finds the tasks to which everything that is given applies."""
    wanted = {"assigned_to_email": assigned_to_email, "list_name": list_name, "due_date": due_date, "board": board}
    if not task_name and not any(wanted.values()):
        return "No search parameters provided."
    if assigned_to_email and "@" not in assigned_to_email:
        return "Invalid email format for assigned_to_email."

    def keep(task: Record) -> bool:
        return all(value.lower() in (task[column] or "").lower() for column, value in wanted.items() if value)

    return state.search("tasks", check_query(task_name), ("task_name",), keep) or "No tasks found."


def create_task(
    state: Workplace,
    task_name: Name = None,
    assigned_to_email: Assignee = None,
    list_name: Annotated[Text, Field(description=f"On which list it is, one of {listed(LISTS)}")] = None,
    due_date: Due = None,
    board: Annotated[Text, Field(description=f"On which board it is, one of {listed(BOARDS)}")] = None,
) -> str:
    """Makes a new task and answers its id."""
    if not task_name or not assigned_to_email or not list_name or not due_date or not board:
        return "Missing task details: task_name, assigned_to_email, list_name, due_date and board are all needed."
    task = dict(zip(CHANGEABLE, (task_name, assigned_to_email, list_name, due_date, board), strict=True))
    for column, value in task.items():
        if wrong := _wrong(state, column, value):
            return wrong
    return state.make("tasks", {**task, "assigned_to_email": assigned_to_email.lower()})


def delete_task(state: Workplace, task_id: TaskId = None) -> str:
    """Removes a task."""
    if not task_id:
        return "Task ID not provided."
    return "Task deleted successfully." if state.delete("tasks", task_id) else "Task not found."


def update_task(
    state: Workplace,
    task_id: TaskId = None,
    field: Annotated[Text, Field(description=f"What to change, one of {listed(CHANGEABLE)}")] = None,
    new_value: Annotated[Text, Field(description="What it is to be")] = None,
) -> str:
    """Changes one field of a task."""
    if not task_id or not field or not new_value:
        return "Task ID, field, or new value not provided."
    if field not in CHANGEABLE:
        return f"Field not valid. Please choose from: {listed(CHANGEABLE)}"
    if wrong := _wrong(state, field, new_value):
        return wrong
    value = new_value.lower() if field == "assigned_to_email" else new_value
    return "Task updated successfully." if state.update("tasks", task_id, field, value) else "Task not found."


TOOLS: list[Tool] = [
    published("project_management", get_task_information_by_id, read_only=True),
    published("project_management", search_tasks, read_only=True),
    *(published("project_management", change) for change in (create_task, delete_task, update_task)),
]
