"""Words of the generated tasks: every value, key and number class belongs to train or to held-out, never to both."""

from __future__ import annotations

from dataclasses import dataclass

from gym_servers.environment import Split


@dataclass(frozen=True)
class Words:
    """The values of one split. `keys` renames a field; `parity` and `cents` are the classes its numbers fall into."""

    first: tuple[str, ...]
    last: tuple[str, ...]
    cities: tuple[str, ...]
    colors: tuple[str, ...]
    items: tuple[str, ...]
    events: tuple[str, ...]
    teams: tuple[str, ...]
    months: tuple[str, ...]
    keys: dict[str, str]
    parity: int
    cents: tuple[int, ...]


TRAIN = Words(
    first=("Maria", "David", "Anna", "James", "Laura", "Peter", "Nina", "Oscar", "Ruth", "Simon", "Clara", "Victor"),
    last=(
        "Lopez",
        "Turner",
        "Novak",
        "Walsh",
        "Meyer",
        "Silva",
        "Bishop",
        "Carter",
        "Olsen",
        "Reyes",
        "Stone",
        "Young",
    ),
    cities=("Lisbon", "Oslo", "Dublin", "Madrid", "Vienna", "Toronto", "Boston", "Cairo", "Lima", "Tokyo"),
    colors=("red", "green", "white", "purple", "silver"),
    items=("lamp", "chair", "kettle", "backpack", "camera", "blanket", "guitar", "mirror", "bottle", "tent"),
    events=("concert", "workshop", "lecture", "parade", "picnic", "auction"),
    teams=("sales", "design", "support", "finance"),
    months=("01", "03", "05", "07", "09", "11"),
    keys={
        "name": "name",
        "age": "age",
        "city": "city",
        "color": "color",
        "item": "product",
        "price": "price",
        "count": "quantity",
        "event": "event",
        "date": "date",
        "team": "team",
        "person": "person",
        "list": "items",
        "tool": "save_order",
        "payload": "order",
    },
    parity=0,
    cents=(25, 50),
)

HELDOUT = Words(
    first=("Elena", "Marcus", "Sofia", "Henry", "Julia", "Thomas", "Irene", "Felix", "Grace", "Bruno", "Diana", "Hugo"),
    last=(
        "Garcia",
        "Parker",
        "Kovac",
        "Murphy",
        "Weber",
        "Costa",
        "Fisher",
        "Mason",
        "Larsen",
        "Torres",
        "Wood",
        "Hill",
    ),
    cities=("Berlin", "Athens", "Prague", "Rome", "Warsaw", "Chicago", "Denver", "Nairobi", "Bogota", "Seoul"),
    colors=("blue", "yellow", "black", "orange", "gold"),
    items=("desk", "clock", "toaster", "suitcase", "printer", "pillow", "violin", "ladder", "bucket", "helmet"),
    events=("festival", "seminar", "meeting", "race", "dinner", "exhibition"),
    teams=("legal", "research", "security", "marketing"),
    months=("02", "04", "06", "08", "10", "12"),
    keys={
        "name": "full_name",
        "age": "years",
        "city": "town",
        "color": "shade",
        "item": "article",
        "price": "cost",
        "count": "number",
        "event": "title",
        "date": "day",
        "team": "department",
        "person": "member",
        "list": "things",
        "tool": "record_purchase",
        "payload": "purchase",
    },
    parity=1,
    cents=(75, 95),
)

WORDS: dict[Split, Words] = {"train": TRAIN, "heldout": HELDOUT}
