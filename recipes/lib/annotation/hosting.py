"""A page that is open: its address and links, the process that samples, and its end."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager

from recipes.lib.annotation.access import Access, names_of
from recipes.lib.annotation.server import make_app, serve
from recipes.lib.errors import UserError
from recipes.lib.feedback.arguments import ServeArguments
from recipes.lib.feedback.project import Project

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"


def host(project: Project, script: ServeArguments) -> None:
    """Open the page, and serve it until everything is answered or Ctrl-C.

    Args:
        project: What is asked.
        script: Keys of the recipe.

    Raises:
        UserError: The address cannot be had, or sampling failed.
    """
    store = project.store
    for name in script.revoke:
        store.revoke(name)
    address = script.host or (EVERYWHERE if script.share else LOOPBACK)
    is_alone = address in (LOOPBACK, "::1", "localhost") and not script.share
    annotator = (script.annotator or _user()) if is_alone else None
    if annotator:
        store.add_annotator(annotator)
    hosts = names_of(address)
    access = Access(store, annotator, hosts)

    def tell(port: int) -> None:
        own = hosts[-1] if not is_alone else "127.0.0.1"
        for name in script.share:
            print(f"{name}: http://{own}:{port}/a/{store.give_secret(name)}")
        if is_alone:
            page = f"http://127.0.0.1:{port}/"
            print(f"Answer on {page} (Ctrl-C ends)", flush=True)
            if script.open_browser and _has_screen():
                # In a thread: some browsers come back when they are closed.
                threading.Thread(target=webbrowser.open, args=(page,), daemon=True).start()

    with _sampling(project, script.chat) as sampler:

        def is_done() -> bool:
            is_broken = sampler is not None and sampler.poll() not in (None, 0)
            wanted = script.num_answers
            return is_broken or (wanted is not None and store.counts()["answers"] >= wanted)

        app = make_app(store, access, str(project.path.resolve()), is_chat=script.chat)
        serve(app, address, script.port, tell, is_done)
        if sampler is not None and sampler.poll() not in (None, 0):
            raise UserError("sampling ended with the error above; what was answered is kept.")


def _has_screen() -> bool:
    # Without one, a browser of the terminal would take it over.
    named = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform != "linux" or any(os.environ.get(name) for name in named)


def _user() -> str:
    try:
        return getpass.getuser()
    except OSError:  # a user without a name
        return "me"


@contextmanager
def _sampling(project: Project, is_chat: bool) -> Iterator[subprocess.Popen[bytes] | None]:
    """The process that samples, while it is needed; it ends with this one, however that ends."""
    if not is_chat and not project.store.counts()["waiting"]:
        yield None
        return
    command = [sys.executable, "-m", "recipes.feedback", "sample", "--wait"]
    process = subprocess.Popen(
        [*command, "--output_dir", str(project.path)],
        stdin=subprocess.PIPE,
        env=os.environ | {"TQDM_DISABLE": "1"},  # bars would run over what this process says
    )
    try:
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        process.terminate()
        process.wait()
