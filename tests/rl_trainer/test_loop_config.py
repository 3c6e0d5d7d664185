"""Configuration: what is wrong is named with its whole key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from gym_servers.environment import Environment
from gym_servers.hosts.local import LocalHost
from gym_servers.hosts.servers import Environments
from gym_servers.protocol import OmnigymError
from gym_servers.registry import load_environment
from rl_trainer import services, tasks
from rl_trainer.config import ConfigError, load_config
from rl_trainer.services import Services

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"model": "m", "steps": 3, "mixture": {"a": 1, "b": 3}}


class Plain(Environment):
    """Without a generator."""

    def verify(self, *_: Any) -> Any:
        raise NotImplementedError


def write(folder: Path, tree: object) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def test_overrides_and_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)
    config = load_config(path, ["optimizer.lr=1e-5", "mixture.b=0", "sampling.temperature=0.7", "policy.dtype=float32"])
    assert config.optimizer.lr == 1e-5 and config.environments == ["a"]
    again = load_config(write(tmp_path, yaml.safe_load(config.to_yaml())))
    assert again.model_dump(mode="json") == config.model_dump(mode="json")
    options = config.policy_options(Path("folder"), None)
    assert options.algorithm.temperature == 0.7 and options.optimizer.lr == 1e-5 and options.dtype == "float32"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.leanring_rate=1", "unknown key 'optimizer.leanring_rate'"),
        ("optimiser.lr=1", "unknown key 'optimiser'; did you mean 'optimizer'"),
        ("samplign.temperature=1", "did you mean 'sampling'"),
        ("algorithm.clip_hihg=1", "did you mean 'algorithm.clip_high'"),
        ("steps=many", "key 'steps': Input should be a valid integer.*found 'many'"),
        ("algorithm.importance.low=x", "key 'algorithm.importance.low'.*found 'x'"),
        ("group_size=1", "rollouts per task is 1"),
        ("mixture.a=-1", "must not be negative"),
        ("tasks.c.n=3", r"tasks names \['c'\]"),
        ("settings.c.judge_url=x", r"settings names \['c'\]"),
        ("settings.a.judge_url=x", "settings: unknown environment 'a'"),
        ("environment_urls.c=http://x", r"environment_urls names \['c'\]"),
        ("environment_urls.a=x", "environment_urls.a 'x' must begin with http"),
        ("environment_urls.a=http://x", "environment_urls.a: set tasks.a.file"),
        ("algorithm.temperature=0.5", "differs from sampling.temperature"),
        ("sampling.max_tokens=5000", "no room for a prompt"),
        ("steps", "must be key=value"),
        ("steps.more=1", "has no keys inside"),
        ("name=a/b", "must be letters"),
        ("placement.environment=ray", "unknown key 'placement.environment'; did you mean 'placement.environments'"),
        ("placement.environments=cloud", "key 'placement.environments'.*'local', 'ray', 'docker' or 'url'"),
        ("placement.url=http://x", "placement.url is for placement.environments: url, which is local"),
        ("placement.image=x", "placement.image is for placement.environments: docker, which is local"),
        ("placement.network=x", "placement.network is for placement.environments: docker"),
        ("placement.memory_mb=512", "placement.memory_mb is for placement.environments: docker"),
        ("placement.environments=url", "placement.url '' must begin with http"),
        ("placement={environments: url, url: 'ftp://x'}", "placement.url 'ftp://x' must begin with http"),
        ("placement={environments: url, url: 'http://me:k@x'}", "no user or password: set OMNIGYM_ENVIRONMENTS_TOKEN"),
        ("placement.restarts=-1", "key 'placement.restarts'"),
        (
            "sampler=gaussian",
            "sampler 'gaussian' needs curriculum.profile, a file that `omnigym profile --config` makes",
        ),
        ("sampler=gausian", "key 'sampler'.*found 'gausian'"),
        (
            "curriculum.replan.patience=2",
            "curriculum.replan.patience counts validations: set val.every and val.tasks too",
        ),
        ("tasks.a.files=x", "unknown key 'tasks.a.files'; did you mean 'tasks.a.file'"),
        ("tasks.a.sede=1", "did you mean 'tasks.a.seed'"),
        ("tasks.a.max_dificulty=1", "did you mean 'tasks.a.max_difficulty'"),
        ("curriculum.replan.patence=2", "did you mean 'curriculum.replan.patience'"),
        ("curriculum.sigma=0", "key 'curriculum.sigma'"),
        ("dynamic_sampling.max_attempts=-1", "key 'dynamic_sampling.max_attempts'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, SMALL), [override])


def test_settings_of_environments_are_checked_by_them(tmp_path: Path) -> None:
    path = write(tmp_path, {**SMALL, "mixture": {"competition_math": 1}})
    config = load_config(path, ["settings.competition_math.require_box=true"])
    assert config.settings == {"competition_math": {"require_box": True}}
    assert load_config(write(tmp_path, yaml.safe_load(config.to_yaml()))).settings == config.settings
    with pytest.raises(ConfigError, match="setting 'require_boxes'.*did you mean 'require_box'"):
        load_config(path, ["settings.competition_math.require_boxes=true"])


def test_rows_are_checked_and_servers_started_with_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {**SMALL, "mixture": {"competition_math": 1, "structured_outputs": 0}, "val": {"tasks": 1}}
    tree["settings"] = {"competition_math": {"require_box": True}, "structured_outputs": {"max_answer_chars": 9}}
    config = load_config(write(tmp_path, tree))
    seen: list[Any] = []

    def load(name: str, settings: Any = None) -> Any:
        seen.append((name, settings))
        return load_environment(name, settings)

    monkeypatch.setattr(tasks, "load_environment", load)
    tasks.load_rows(config, "competition_math")
    tasks.load_heldout(config, "competition_math")
    assert seen == [("competition_math", {"require_box": True})] * 4  # rows made and checked, twice
    started: list[Environments] = []
    monkeypatch.setattr(services, "environment_server", lambda host, wanted: started.append(wanted))
    Services(config, tmp_path).start_environments()
    (wanted,) = started
    assert (wanted.names, wanted.settings) == (["competition_math"], {"competition_math": {"require_box": True}})
    assert wanted.arguments() == ["competition_math", "--set=competition_math.require_box=true"]


def test_placement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is absent, as in the run folders of earlier versions, environments are local; what does not go together is named."""
    path = write(tmp_path, {**SMALL, "mixture": {"competition_math": 1}})
    config = load_config(path)
    assert config.placement.environments == "local"
    tree = yaml.safe_load(config.to_yaml())
    assert load_config(write(tmp_path, tree)) == config
    del tree["placement"]
    assert load_config(write(tmp_path, tree)) == config
    with pytest.raises(ConfigError, match="placement.environments: ray needs ray.enabled: true"):
        load_config(path, ["placement.environments=ray", "ray.enabled=false"])
    there = "placement={environments: url, url: 'http://gateway:8000/'}"
    with pytest.raises(ConfigError, match=r"settings.competition_math: the server at placement.url has settings"):
        load_config(path, [there, "settings.competition_math.require_box=true"])

    elsewhere = load_config(path, [there])
    assert len(tasks.load_rows(elsewhere, "competition_math")) == 512  # its tasks are generated all the same
    started: list[tuple[str, Environments]] = []
    monkeypatch.setattr(services, "environment_server", lambda host, wanted: started.append((host, wanted)))
    monkeypatch.delenv("OMNIGYM_ENVIRONMENTS_TOKEN", raising=False)
    with pytest.raises(OmnigymError, match="placement.url http://gateway:8000/: set OMNIGYM_ENVIRONMENTS_TOKEN"):
        Services(elsewhere, tmp_path).start_environments()
    (tmp_path / "token").write_text("theirs\n")
    monkeypatch.setenv("OMNIGYM_ENVIRONMENTS_TOKEN_FILE", str(tmp_path / "token"))
    Services(elsewhere, tmp_path).start_environments()
    ((host, wanted),) = started
    assert (host, wanted.token, wanted.url) == ("url", "theirs", "http://gateway:8000/")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path, SMALL)
    with pytest.raises(ConfigError, match=r"no configuration file .*runs\.yaml.*did you mean 'run\.yaml'"):
        load_config(tmp_path / "runs.yaml")
    with pytest.raises(ConfigError, match="expected keys and values, found list"):
        load_config(write(tmp_path, [1]))
    (tmp_path / "run.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="'steps' is required"):
        load_config(write(tmp_path, {"model": "m", "mixture": {"a": 1}}))


def test_the_demo_configuration_is_valid() -> None:
    config = load_config(ROOT / "rl_trainer" / "configs" / "demo.yaml")
    assert config.policy.dtype == "bf16" and config.sampling.temperature == 1.0


def test_the_curriculum_s_configuration_is_valid_in_both_arms() -> None:
    path = ROOT / "rl_trainer" / "configs" / "curriculum.yaml"
    for order in ("gaussian", "random"):
        config = load_config(path, [f"sampler={order}"])
        assert (
            config.sampler == order and config.curriculum.profile == Path("runs/curriculum/profile.parquet").resolve()
        )
        assert {tasks.max_difficulty for tasks in config.tasks.values()} == {1.0}


def test_an_environment_of_another_server_has_its_tasks_in_a_file_and_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"responses_create_params": {"input": "?"}, "anything": 1}\n')
    urls = {"theirs": "https://me:secret@far.example/weather/"}
    tree = {"model": "m", "steps": 1, "mixture": {"theirs": 1, "competition_math": 1}, "environment_urls": urls}
    config = load_config(write(tmp_path, {**tree, "tasks": {"theirs": {"file": str(rows)}}}))
    (task,) = tasks.load_rows(config, "theirs")
    assert task.row["anything"] == 1 and tasks.load_heldout(config, "theirs") == []
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(f'{{"responses_create_params": {{"input": "{k}"}}}}\n' for k in range(3)))
    with_heldout = {**tree, "tasks": {"theirs": {"file": str(rows), "heldout": str(heldout)}}, "val": {"tasks": 2}}
    found = tasks.load_heldout(load_config(write(tmp_path, with_heldout)), "theirs")
    assert [task.row["responses_create_params"]["input"] for task in found] == ["0", "1"]
    rows.write_text('{"question": "?"}\n')
    with pytest.raises(OmnigymError, match=r"rows.jsonl:1: field 'responses_create_params' must be an object"):
        tasks.load_rows(config, "theirs")
    with pytest.raises(ConfigError, match=r"settings.theirs: its server, environment_urls.theirs, has settings"):
        load_config(tmp_path / "run.yaml", ["settings.theirs.x=1"])

    started: list[list[str]] = []

    def start(host: str, wanted: Environments) -> Ready:
        started.append(list(wanted.names))
        return Ready("http://127.0.0.1:1")

    monkeypatch.setattr(services, "environment_server", start)
    monkeypatch.setattr(LocalHost, "start_model", lambda self, *_: Ready("http://127.0.0.1:2"))
    for mixture, own in (({"theirs": 1, "competition_math": 1}, ["competition_math"]), ({"theirs": 1}, [])):
        one = config.model_copy(update={"mixture": mixture})
        with Services(one, tmp_path) as run:
            run.start_model(tmp_path)
            run.start_environments()
            generation = run.generation()
        assert generation.model_url == "http://127.0.0.1:2"
        expected = {
            "theirs": "https://me:secret@far.example/weather",
            **{name: f"http://127.0.0.1:1/{name}" for name in own},
        }
        assert generation.environments == expected
    assert started == [["competition_math"]]


class Ready:
    """A server that is ready."""

    def __init__(self, url: str) -> None:
        self.url = url

    def wait_ready(self, seconds: float) -> str:
        return self.url

    def environment_url(self, name: str) -> str:
        return f"{self.url}/{name}"

    def stop(self) -> None: ...


def test_an_environment_without_a_generator_says_which_files_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "load_environment", lambda *_: Plain())
    config = load_config(write(tmp_path, SMALL))
    with pytest.raises(ConfigError, match=r"environment 'a' has no generator: set tasks\.a\.file"):
        tasks.load_rows(config, "a")
    with pytest.raises(ConfigError, match=r"set tasks\.a\.heldout, or val\.tasks=0 for no evaluation"):
        tasks.load_heldout(config, "a")
