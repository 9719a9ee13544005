"""One commit or none: each request to the Hub fails in each way, and pushing processes are killed.

The client is the real one, the Hub the loopback one; waiting takes no time here.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recipes.lib.errors import UserError
from recipes.lib.publishing.bundle import gather
from recipes.lib.publishing.push import Repository, push
from tests.helpers.loopback_hub import Fault, LoopbackHub

ROOT = Path(__file__).parents[2]
NAME = "someone/tiny"
COMMIT = "/commit/main"
FAR_AWAY = 99  # times: for good
# A connection that is cut, and for those with time every answer that passes.
ANSWERS = [None, *(pytest.param(n, marks=pytest.mark.slow) for n in (408, 429, 500, 502, 503, 504))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What passes for a model; nothing here loads it."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 400)
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What was waited, in seconds."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def new_hub(online: Callable[[LoopbackHub], None]) -> Iterator[Callable[[], LoopbackHub]]:
    """Makes Hubs that the client speaks to, the newest one at a time."""
    hubs: list[LoopbackHub] = []

    def make() -> LoopbackHub:
        hubs.append(LoopbackHub().__enter__())
        online(hubs[-1])
        return hubs[-1]

    yield make
    for hub in hubs:
        hub.__exit__()


@pytest.fixture
def hub(new_hub: Callable[[], LoopbackHub]) -> LoopbackHub:
    return new_hub()


def send(folder: Path, **more: str) -> Repository:
    """Push, and give what is known of the repository then."""
    place = Repository("tiny", private=True, **more)
    push(gather(str(folder), "tiny"), place, "A message")
    return place


def refused(folder: Path) -> str:
    """The sentence that a push ends with."""
    with pytest.raises(UserError) as told:
        send(folder)
    return str(told.value)


def commits(hub: LoopbackHub) -> int:
    """Commits that were made, but for the one that each repository begins with."""
    return len(hub.model(NAME).log) - 1 if ("models", NAME) in hub.repos else 0


def is_whole(hub: LoopbackHub, folder: Path) -> bool:
    """Whether the head holds every file of the folder, and a card."""
    there = hub.model(NAME).files[hub.model(NAME).head]
    here = {path.name: path.read_bytes() for path in folder.iterdir()}
    return "README.md" in there and there | here == there


def test_a_push_is_one_commit_with_its_parent(folder: Path, hub: LoopbackHub) -> None:
    place = send(folder)
    assert (place.name, place.commit, place.sent) == (NAME, hub.model(NAME).head, 4)
    assert hub.model(NAME).private
    assert is_whole(hub, folder)
    (made,) = hub.model(NAME).log[1:]
    assert made["message"] == "A message"


@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("code", ANSWERS)
def test_each_request_fails_once_in_each_way_and_one_commit_is_made(
    code: int | None,
    is_after: bool,
    folder: Path,
    new_hub: Callable[[], LoopbackHub],
    waits: list[float],
) -> None:
    clean = new_hub()
    send(folder)
    assert len(clean.asked) == 11
    for number, request in enumerate(clean.asked):
        hub = new_hub()
        hub.faults = [Fault(number, code, is_after)]
        place = send(folder)
        assert hub.faults[0].times == 0
        assert place.commit == hub.model(NAME).head, request
        assert is_whole(hub, folder), request
        assert commits(hub) == 1, request
    assert max(waits) <= 2


@pytest.mark.parametrize("code", ANSWERS)
def test_all_requests_from_one_on_fail_and_the_sentence_says_what_is_there(
    code: int | None, folder: Path, new_hub: Callable[[], LoopbackHub], waits: list[float]
) -> None:
    for number in range(9):  # up to the commit
        hub = new_hub()
        hub.faults = [Fault(later, code) for later in range(number, 500)]
        said = refused(folder)
        assert commits(hub) == 0
        # Before the first look there was nothing to lose, and after it nobody answers.
        expected = "; nothing was sent." if number <= 2 else "is as it was (at "
        assert expected in said, (number, said)
        hub.faults = []
        place = send(folder)
        assert (commits(hub), place.commit) == (1, hub.model(NAME).head)
        assert is_whole(hub, folder)


@pytest.mark.parametrize("code", [None, 500, 503])
def test_a_commit_that_never_arrives_leaves_the_repository_as_it_was(
    code: int | None, folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    hub.faults = [Fault(COMMIT, code, times=FAR_AWAY)]
    said = refused(folder)
    head = hub.model(NAME).head
    assert f"; the repository is as it was, at commit {head[:10]}." in said
    assert commits(hub) == 0
    assert waits == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("code", [None, 500, 502, 504])
def test_a_commit_whose_answer_is_lost_is_found_and_not_repeated(
    code: int | None, folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    hub.faults = [Fault(COMMIT, code, is_after=True, times=FAR_AWAY)]
    place = send(folder)
    assert sum(COMMIT in request for request in hub.asked) == 1
    assert (commits(hub), place.commit) == (1, hub.model(NAME).head)


def test_a_commit_that_lands_late_is_not_taken_for_somebody_elses(
    folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    def land(number: int) -> None:
        if COMMIT in hub.asked[number] and waits:
            ours = {path.name: path.read_bytes() for path in folder.iterdir()}
            with gather(str(folder), "tiny").files["README.md"].as_file() as card:
                hub.commit(NAME, ours | {"README.md": card.read()}, "A message")

    hub.before = land
    hub.faults = [Fault(COMMIT, 504)]
    assert send(folder).commit == hub.model(NAME).head
    assert commits(hub) == 1
    assert waits == [1]


def test_a_hub_that_is_silent_after_the_commit_is_asked_by_the_next_push(
    folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    def go_silent(number: int) -> None:
        if COMMIT in hub.asked[number]:
            hub.faults = [Fault("/", times=FAR_AWAY)]

    hub.after = go_silent
    hub.faults = [Fault(COMMIT, is_after=True)]
    assert "or whole; push again, and nothing is sent twice." in refused(folder)
    hub.faults, asked = [], len(hub.asked)
    assert send(folder).sent == 0
    assert commits(hub) == 1
    assert not [request for request in hub.asked[asked:] if "PUT" in request or COMMIT in request]


REFUSALS = {
    401: "the Hub does not take the token; run hf auth login, or set HF_TOKEN",
    403: "the token may not write there",
    409: "another change of it is under way",
    412: "somebody else has committed in the meantime",
    413: "the Hub has no room for it",
}


@pytest.mark.parametrize("request_", ["/repos/create", "/preupload/", "/objects/batch", COMMIT])
@pytest.mark.parametrize("code", REFUSALS)
def test_a_refusal_is_one_sentence_and_changes_nothing(
    code: int, request_: str, folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    if request_ == "/repos/create" and code == 409:
        return  # it is there already, which is no refusal
    hub.faults = [Fault(request_, code, times=FAR_AWAY)]
    said = refused(folder)
    assert said.startswith(f"repo=tiny: {REFUSALS[code]}")
    if request_ == "/repos/create":
        assert said.endswith("; nothing was sent.")
    else:
        assert said.endswith(f"is as it was, at commit {hub.model(NAME).head[:10]}.")
    assert commits(hub) == 0
    assert waits == []


def test_a_full_account_is_told_as_such(folder: Path, hub: LoopbackHub) -> None:
    full = "Private repository storage limit reached"
    hub.faults = [Fault("/objects/batch", 403, said=full)]
    assert f"the Hub has no room for it ({full})" in refused(folder)


@pytest.mark.parametrize(
    "headers", [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=7'}], ids=["retry", "rate"]
)
def test_the_hub_says_how_long_to_wait(
    headers: dict[str, str], folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    hub.faults = [Fault(COMMIT, 429, headers=headers)]
    assert send(folder).commit == hub.model(NAME).head
    assert waits == [7]


def test_nobody_waits_for_an_hour(folder: Path, hub: LoopbackHub, waits: list[float]) -> None:
    hub.faults = [Fault(COMMIT, 429, headers={"Retry-After": "3600"}, times=FAR_AWAY)]
    assert "the Hub says 429" in refused(folder)
    assert waits == []


def test_who_commits_in_the_meantime_is_not_overwritten(folder: Path, hub: LoopbackHub) -> None:
    def meddle(number: int) -> None:
        if COMMIT in hub.asked[number]:
            hub.commit(NAME, {"config.json": b"theirs"})

    hub.before = meddle
    said = refused(folder)
    head = hub.model(NAME).head
    assert "somebody else has committed in the meantime" in said
    assert f"is as somebody else left it, at commit {head[:10]}." in said
    assert hub.model(NAME).files[head]["config.json"] == b"theirs"


def test_a_commit_of_somebody_else_between_two_tries_is_noticed(
    folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    def meddle(number: int) -> None:
        if COMMIT in hub.asked[number]:
            hub.commit(NAME, {"notes.txt": b"theirs"})

    hub.before = meddle
    hub.faults = [Fault(COMMIT)]
    assert "somebody else has committed in the meantime" in refused(folder)
    assert commits(hub) == 1
    assert "model.safetensors" not in hub.model(NAME).files[hub.model(NAME).head]


def test_only_what_changed_is_sent_again(folder: Path, hub: LoopbackHub, tmp_path: Path) -> None:
    first = send(folder).commit
    asked = len(hub.asked)
    again = send(folder)
    assert (again.commit, again.sent, commits(hub)) == (first, 0, 1)
    copy = tmp_path / folder.name
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "config.json").write_text("{}")
    assert send(copy).sent == 1
    assert hub.model(NAME).log[-1]["changed"] == {"config.json"}
    assert not [one for one in hub.asked[asked:] if "PUT" in one]


def test_weights_of_an_earlier_push_do_not_stay_beside_others(
    folder: Path, hub: LoopbackHub
) -> None:
    send(folder)
    old = ["model-00001-of-00002.safetensors", "adapter_config.json", "pytorch_model.bin"]
    hub.commit(NAME, dict.fromkeys([*old, "notes.txt", "gguf/model.bin"], b"old"))
    send(folder)
    there = hub.model(NAME).files[hub.model(NAME).head]
    assert not set(old) & set(there)
    assert {"notes.txt", "gguf/model.bin", ".gitattributes"} < set(there)


def test_large_files_go_in_parts(folder: Path, hub: LoopbackHub) -> None:
    hub.has_parts = True
    send(folder)
    assert sum("PUT" in request for request in hub.asked) == 3  # of 40 kB, for 102,400 bytes
    assert is_whole(hub, folder)


def test_what_the_repository_ignores_is_told(folder: Path, hub: LoopbackHub) -> None:
    hub.ignored = ["*.json"]
    assert "lacks config.json; look whether a .gitignore there names it" in refused(folder)


def test_a_card_that_the_hub_cannot_read_is_told(
    folder: Path, hub: LoopbackHub, waits: list[float]
) -> None:
    hub.faults = [Fault("/validate-yaml", 400, said="no such licence")]
    said = refused(folder)
    assert "the Hub says 400 (no such licence)" in said
    assert said.endswith(f"is as it was, at commit {hub.model(NAME).head[:10]}.")
    assert waits == []


def test_a_public_repository_gets_nothing_private(folder: Path, hub: LoopbackHub) -> None:
    push(gather(str(folder)), Repository("tiny", private=False), "first")
    hub.commit(NAME, {"config.json": b"other"})
    assert "repo=tiny: it is public; make it private on the Hub, or give --private" in refused(
        folder
    )
    assert commits(hub) == 2


def test_a_branch_is_made_and_the_main_one_left_alone(folder: Path, hub: LoopbackHub) -> None:
    place = send(folder, branch="trial/one")
    repo = hub.model(NAME)
    assert repo.branches["trial/one"] == place.commit != repo.head
    assert list(repo.files[repo.head]) == [".gitattributes"]
    assert send(folder, branch="trial/one").sent == 0


def test_no_hub_is_told_at_once(
    folder: Path, hub: LoopbackHub, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.server.server_close()
    said = refused(folder)
    assert said.startswith("repo=tiny: it does not get through (")
    assert said.endswith("; nothing was sent.")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refused(folder)
    assert waits == []


SCRIPT = """
import sys
from recipes.lib.publishing.bundle import gather
from recipes.lib.publishing.push import Repository, push
push(gather(sys.argv[1], "tiny"), Repository("tiny", private=True), "A message")
"""


def kill_at(number: int, is_after: bool, folder: Path, hub: LoopbackHub) -> None:
    """Start a process that pushes, and kill it when it asks for the n-th time."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )

    def kill(now: int) -> None:
        if now == number:
            process.send_signal(signal.SIGKILL)

    hub.before, hub.after = (lambda _: None, kill) if is_after else (kill, lambda _: None)
    assert process.wait(timeout=120) == -signal.SIGKILL
    hub.before = hub.after = lambda _: None


def survives(number: int, is_after: bool, folder: Path, hub: LoopbackHub) -> None:
    kill_at(number, is_after, folder, hub)
    with hub.lock:  # the request of the dead has had its effect
        is_done = commits(hub) == 1 and is_whole(hub, folder)
        assert is_done or commits(hub) == 0
    place = send(folder)
    assert (place.sent == 0) is is_done
    assert (commits(hub), place.commit) == (1, hub.model(NAME).head)
    assert is_whole(hub, folder)


# While the weights are sent, before the commit, and when it has been made.
@pytest.mark.parametrize(("number", "is_after"), [(6, False), (8, False), (8, True)])
def test_a_killed_push_is_whole_or_nothing(
    number: int, is_after: bool, folder: Path, hub: LoopbackHub
) -> None:
    survives(number, is_after, folder, hub)


@pytest.mark.slow
@pytest.mark.parametrize("is_after", [False, True])
@pytest.mark.parametrize("number", range(11))
def test_a_push_killed_at_any_request_is_whole_or_nothing(
    number: int, is_after: bool, folder: Path, hub: LoopbackHub
) -> None:
    survives(number, is_after, folder, hub)
