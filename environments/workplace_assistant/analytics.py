"""Tools of the web site's analytics. A plot is the name of the file it would be in, which tells all that was asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from environments.workplace_assistant.arguments import Text, day_bounds, listed, published
from environments.workplace_assistant.database import Visit, moment
from environments.workplace_assistant.state import Workplace
from gym_servers.tools import Tool, ToolRefused

SOURCES = ("direct", "referral", "search engine", "social media")
VALUES = (
    "total_visits",
    "session_duration_seconds",
    "user_engaged",
    "visits_direct",
    "visits_referral",
    "visits_search_engine",
    "visits_social_media",
)
PLOTS = ("bar", "line", "scatter", "histogram")
First = Annotated[Text, Field(description="First day, inclusive, as YYYY-MM-DD")]
Last = Annotated[Text, Field(description="Last day, inclusive, as YYYY-MM-DD")]


def _by_day(state: Workplace, low: str | None, high: str | None, make: Callable[[list[Visit]], Any]) -> dict[str, Any]:
    """What `make` says of each day's visits, for the days that have any."""
    within = day_bounds(("time_min", low), ("time_max", high))
    days: dict[str, list[Visit]] = defaultdict(list)
    for visit in state.base.visits:
        days[visit.day.isoformat()].append(visit)
    return {day: make(days[day]) for day in sorted(days) if within(day)}


def get_visitor_information_by_id(
    state: Workplace, visitor_id: Annotated[Text, Field(description="Id of the visitor")] = None
) -> Any:
    """Tells all visits of one visitor."""
    if not visitor_id:
        return "Visitor ID not provided."
    found = [visit.shown() for visit in state.base.visits if visit.visitor_id == visitor_id]
    return found or "Visitor not found."


def create_plot(
    state: Workplace,
    time_min: First = None,
    time_max: Last = None,
    value_to_plot: Annotated[Text, Field(description=f"What to plot, one of {listed(VALUES)}")] = None,
    plot_type: Annotated[Text, Field(description=f"What kind of plot, one of {listed(PLOTS)}")] = None,
) -> str:
    """Plots a value over some days and answers the file of the plot."""
    if not time_min:
        return "Start date not provided."
    if not time_max:
        return "End date not provided."
    if value_to_plot not in VALUES:
        return f"Value to plot must be one of {listed(VALUES)}"
    if plot_type not in PLOTS:
        return f"Plot type must be one of {listed(PLOTS)}"
    for name, day in (("time_min", time_min), ("time_max", time_max)):
        if moment(day) is None:
            raise ToolRefused(f"argument '{name}': '{day[:40]}' is not a date. Format: YYYY-MM-DD")
    state.room()
    state.plots.append(f"plots/{time_min}_{time_max}_{value_to_plot}_{plot_type}.png")
    return state.plots[-1]


def total_visits_count(state: Workplace, *, time_min: First = None, time_max: Last = None) -> dict[str, Any]:
    """Counts the visits of each day."""
    return _by_day(state, time_min, time_max, len)


def engaged_users_count(state: Workplace, *, time_min: First = None, time_max: Last = None) -> dict[str, Any]:
    """Counts the visits of each day in which the user was engaged."""
    return _by_day(state, time_min, time_max, lambda visits: sum(visit.engaged for visit in visits))


def traffic_source_count(
    state: Workplace,
    *,
    time_min: First = None,
    time_max: Last = None,
    traffic_source: Annotated[Text, Field(description=f"Where they came from, one of {listed(SOURCES)}")] = None,
) -> Any:
    """Counts the visits of each day that came from one source; all visits where none is given."""
    if not traffic_source:
        return _by_day(state, time_min, time_max, len)
    if traffic_source not in SOURCES:
        return f"Traffic source must be one of {listed(SOURCES)}"
    return _by_day(state, time_min, time_max, lambda visits: sum(visit.source == traffic_source for visit in visits))


def get_average_session_duration(state: Workplace, *, time_min: First = None, time_max: Last = None) -> dict[str, Any]:
    """Tells the mean length of a visit of each day, in seconds."""
    return _by_day(state, time_min, time_max, lambda visits: sum(visit.seconds for visit in visits) / len(visits))


TOOLS: list[Tool] = [
    published("analytics", get_visitor_information_by_id, read_only=True),
    published("analytics", create_plot),
    published("analytics", total_visits_count, read_only=True),
    published("analytics", engaged_users_count, read_only=True),
    published("analytics", traffic_source_count, read_only=True),
    published("analytics", get_average_session_duration, read_only=True),
]
