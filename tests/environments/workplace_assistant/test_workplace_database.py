"""Databases from folders, and states that travel between processes."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from environments.workplace_assistant.database import FORMS, VISITS, load, read_folder
from environments.workplace_assistant.server import WorkplaceAssistant, WorkplaceSettings
from environments.workplace_assistant.state import Workplace
from environments.workplace_assistant.toolset import call
from gym_servers.environment import Row
from gym_servers.protocol import OmnigymError

FILES = {
    "email_addresses.csv": "ann@x.org\nbob@x.org\n",
    "emails.csv": 'email_id,inbox/outbox,sender/recipient,subject,sent_datetime,body\n001,inbox,ann@x.org,Hi,2023-11-01 10:00:00,"a, b"\n',
    "calendar_events.csv": "event_id,event_name,participant_email,event_start,duration\n002,Talk,ann@x.org,2023-11-02 10:00:00,30\n",
    "project_tasks.csv": "task_id,task_name,assigned_to_email,list_name,due_date,board\n003,Fix,ann@x.org,Backlog,2023-12-01,Design\n",
    "customer_relationship_manager_data.csv": (
        "customer_id,assigned_to_email,customer_name,customer_email,customer_phone,last_contact_date,product_interest,status,"
        "follow_up_by,notes\n004,ann@x.org,Cy,,,2023-11-01,Software,Lead,2023-12-02,\n"
    ),
    "analytics_data.csv": (
        "date_of_visit,visitor_id,page_views,session_duration_seconds,traffic_source,user_engaged\n2023-11-03,0005,1,9,direct,True\n"
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_folder_is_read(folder: Path) -> None:
    base = read_folder(folder)
    assert base.tables["emails"]["001"]["body"] == "a, b"
    assert base.tables["customers"]["004"]["customer_phone"] is None and base.tables["customers"]["004"]["notes"] == ""
    assert (base.people, base.now, base.visits[0].engaged) == (("ann@x.org", "bob@x.org"), "2023-11-30 23:59:00", True)
    state = WorkplaceAssistant(WorkplaceSettings(database=str(folder))).seed(Row())
    assert call(state, "calendar_delete_event", {"event_id": "002"}) == "Event deleted successfully."


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("emails.csv", "subject,", "", r"emails.csv: no column 'subject'; found \['email_id'"),
        ("emails.csv", "Hi,", "", "emails.csv:2: 5 cells, the header has 6"),
        ("emails.csv", "2023-11-01 10:00:00", "Nov 1", "emails.csv:2: column 'sent_datetime' must be a date.*'Nov 1'"),
        ("emails.csv", "001,", "x1,", "emails.csv:2: column 'email_id' must be a number, found 'x1'"),
        ("emails.csv", "ann@x.org", "", "emails.csv:2: column 'sender/recipient' is empty"),
        ("emails.csv", '"a, b"', '"a, b', "emails.csv: not a CSV file in UTF-8"),
        ("calendar_events.csv", ",30", ",half", "calendar_events.csv:2: column 'duration' must be a number of minutes"),
        (
            "project_tasks.csv",
            "003,",
            "003,Fix,ann@x.org,Backlog,2023-12-01,Design\n003,",
            "'task_id': '003' stands there twice",
        ),
        (
            "analytics_data.csv",
            "True",
            "yes",
            "analytics_data.csv:2: column 'user_engaged' must be True or False, found 'yes'",
        ),
        ("analytics_data.csv", ",9,", ",nine,", "column 'session_duration_seconds' must be a whole number"),
        ("email_addresses.csv", "bob@x.org", "bob", "email_addresses.csv:2: must be an email address, found 'bob'"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_line_and_column(
    folder: Path, file: str, old: str, new: str, said: str
) -> None:
    assert old in FILES[file]
    (folder / file).write_text(FILES[file].replace(old, new, 1))
    with pytest.raises(OmnigymError, match=said):
        read_folder(folder)


@pytest.mark.parametrize("file", [*(form.file for form in FORMS.values()), VISITS.file, "email_addresses.csv"])
def test_a_file_that_is_absent_or_no_text_is_named(folder: Path, file: str) -> None:
    (folder / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OmnigymError, match=f"{file}: not a"):
        read_folder(folder)
    (folder / file).unlink()
    with pytest.raises(OmnigymError, match=f"{file}: cannot be read"):
        read_folder(folder)


def test_an_absent_folder_is_named() -> None:
    with pytest.raises(OmnigymError, match="setting 'database': no folder '/nowhere'"):
        load("/nowhere")


def test_a_state_holds_its_changes_and_not_the_database() -> None:
    state = Workplace(load(""))
    assert len(pickle.dumps(state)) < 300
    call(state, "email_delete_email", {"email_id": "00000018"})
    call(state, "email_send_email", {"recipient": "a@b.c", "subject": "S", "body": "B"})
    body = pickle.dumps(state)
    assert len(body) < 1000
    again = pickle.loads(body)
    assert again.base is state.base
    assert (again.changes, again.made, again.plots) == (state.changes, state.made, state.plots)


def test_another_process_goes_on_with_a_state(tmp_path: Path) -> None:
    """Our own company is the same in every process, whatever its hash seed."""
    state = Workplace(load(""))
    call(state, "email_delete_email", {"email_id": "00000018"})
    (tmp_path / "state").write_bytes(pickle.dumps(state))
    program = (
        "import pickle, sys\n"
        "from environments.workplace_assistant.toolset import call\n"
        "state = pickle.loads(open(sys.argv[1], 'rb').read())\n"
        "assert call(state, 'email_delete_email', {'email_id': '00000018'}) == 'Email not found.'\n"
        "assert call(state, 'email_delete_email', {'email_id': '00000019'}) == 'Email deleted successfully.'\n"
        "open(sys.argv[1], 'wb').write(pickle.dumps(state))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "state")], check=True, env=environment, timeout=120)
    again = pickle.loads((tmp_path / "state").read_bytes())
    assert again.changes == {"emails": {"00000018": None, "00000019": None}}


def test_a_state_of_other_files_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other") / "db"
    shutil.copytree(folder, other)
    body = pickle.dumps(Workplace(load(str(other))))
    load.cache_clear()
    (other / "emails.csv").write_text(FILES["emails.csv"].replace("Hi", "Ho"))
    with pytest.raises(OmnigymError, match="is not the one that the session started from"):
        pickle.loads(body)
