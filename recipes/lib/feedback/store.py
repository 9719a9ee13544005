"""The store of a feedback project: what is asked, who answers, every answer, in one database.

SQLite by default (a file in the project's folder), PostgreSQL by its URL. Answers are only ever
added, but for `forget`. Several people and the process that samples write at a time.
"""

from __future__ import annotations

import hashlib
import random
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from recipes.lib.errors import UserError
from recipes.lib.feedback import tables
from recipes.lib.feedback.rows import Row, item_id
from recipes.lib.feedback.tables import ANNOTATORS, ANSWERS, CLAIMS, ITEMS, JOBS, META, TABLES

ASKED = sa.select(CLAIMS, ITEMS.c.content).join(ITEMS, ITEMS.c.id == CLAIMS.c.item)
LEASE = 300.0  # seconds after which an item that nobody answered is asked of others
FILE = "feedback.db"


# What is asked: id, prompt, completions (content, run), kind, aspects, perhaps gold, num_wanted.
Item = dict[str, Any]


class Asked(TypedDict):
    """An item that is lent to somebody."""

    claim: str
    item: Item
    shown_order: list[int]  # shown_order[0] is the index of the completion that stands first


class Store:
    """A database of feedback.

    Args:
        url: Path of a SQLite file, or the URL of a database, such as postgresql://host/name.

    Raises:
        UserError: It cannot be opened, or a newer version of the project made it.
    """

    def __init__(self, url: str | Path) -> None:
        try:
            self.engine = tables.open_engine(url)
            is_file = self.engine.dialect.name == "sqlite"
            self.file = Path(str(self.engine.url.database)) if is_file else None
            if sa.inspect(self.engine).has_table(META.name):
                self._upgrade(self._get("schema_version"))
            with self.engine.begin() as connection:
                TABLES.create_all(connection)
                put = self._ignoring(META).values(key="schema_version", value=tables.SCHEMA_VERSION)
                connection.execute(put)
        except (sa.exc.SQLAlchemyError, ImportError) as error:
            told = " ".join(str(error).split("\n", 1)[0].split())
            raise UserError(f"database={url}: cannot be opened: {told}.") from error

    @property
    def settings(self) -> dict[str, Any]:
        """What the project was begun with."""
        return self._get("settings") or {}

    @settings.setter
    def settings(self, value: dict[str, Any]) -> None:
        with self._writing() as connection:
            connection.execute(sa.delete(META).where(META.c.key == "settings"))
            connection.execute(sa.insert(META).values(key="settings", value=value))

    # what is to be sampled

    def add_jobs(self, jobs: Iterable[dict[str, Any]], *, annotator: str | None = None) -> None:
        """Put prompts into the queue; one that is there already stays as it is.

        Args:
            jobs: With `item` (its id) and what the sampling takes.
            annotator: Who waits for a reply; None for items that are asked of anybody.
        """
        values = [{"item": job["item"], "content": job, "annotator": annotator} for job in jobs]
        if values:
            with self._writing() as connection:
                connection.execute(self._ignoring(JOBS), values)

    def next_jobs(self, number: int) -> list[dict[str, Any]]:
        """The first that wait, replies before all, which come alone."""
        order = (JOBS.c.annotator.is_(None), JOBS.c.number)
        query = sa.select(JOBS).where(JOBS.c.state == "waiting").order_by(*order).limit(number)
        found = self._read(query)
        return [row.content for row in [r for r in found if r.annotator is not None][:1] or found]

    def tell_job(self, item: str, **changes: Any) -> None:
        """Note how far a job is: what was written so far, or its state."""
        state = changes.pop("state", None)
        with self._writing() as connection:
            at = JOBS.c.item == item
            content = connection.execute(sa.select(JOBS.c.content).where(at)).scalar()
            if content is None:  # who waits for it was forgotten
                return
            values = {"content": content | changes} | ({"state": state} if state else {})
            connection.execute(sa.update(JOBS).where(at).values(values))

    def job(self, item: str, annotator: str) -> dict[str, Any]:
        """A job of somebody's chat, with its state.

        Raises:
            UserError: There is none of that name.
        """
        rows = self._read(sa.select(JOBS).where(JOBS.c.item == item, JOBS.c.annotator == annotator))
        if not rows:
            raise UserError(f"job={item}: {annotator} has asked for no such reply.")
        return {**rows[0].content, "state": rows[0].state}

    # what is asked

    def add_items(self, items: Iterable[Item]) -> None:
        """Add what is asked, and end the jobs it comes from; what is there already stays."""
        values = [
            {"id": item["id"], "content": item, "num_wanted": item.get("num_wanted", 1)}
            | {"repeats": item.get("repeats")}
            for item in items
        ]
        if not values:
            return
        ended = sa.update(JOBS).where(JOBS.c.item == sa.bindparam("id")).values(state="done")
        with self._writing() as connection:
            connection.execute(self._ignoring(ITEMS), values)
            connection.execute(ended, [{"id": one["id"]} for one in values])

    def items(self) -> list[Item]:
        """All items in their order."""
        return self._contents(sa.select(ITEMS.c.content).order_by(ITEMS.c.position))

    def counts(self) -> dict[str, int]:
        """How many items; done; that nobody had; answers; prompts that wait to be sampled."""
        of_items = sa.select(sa.func.count(ITEMS.c.id))
        return self._numbers(
            items=of_items,
            answered=of_items.where(ITEMS.c.num_answered >= ITEMS.c.num_wanted),
            fresh=of_items.where(ITEMS.c.is_open, ITEMS.c.id.not_in(sa.select(CLAIMS.c.item))),
            answers=sa.select(sa.func.coalesce(sa.func.sum(ITEMS.c.num_answered), 0)),
            waiting=sa.select(sa.func.count()).where(JOBS.c.state == "waiting"),
        )

    def close_items(self, kept: Sequence[str]) -> None:
        """Ask nobody any more about other items than these."""
        with self._writing() as connection:
            at = sa.update(ITEMS).where(ITEMS.c.is_open, ITEMS.c.id.not_in(kept))
            connection.execute(at.values(is_open=False))

    def is_over(self, num_answers: int) -> bool:
        """Whether so many answers are there, or nobody has anything left to answer."""
        counts = self.counts()
        if counts["answers"] >= num_answers:
            return True
        left = [self.progress(name)["left"] for name in self.annotators()]
        return bool(counts["items"]) and not counts["waiting"] and not any(left)

    # who answers

    def add_annotator(self, name: str) -> None:
        """Know a name; one that is known stays as it is."""
        with self._writing() as connection:
            connection.execute(self._ignoring(ANNOTATORS).values(name=name))

    def annotators(self) -> list[str]:
        """All names."""
        return [row.name for row in self._read(sa.select(ANNOTATORS).order_by("name"))]

    def give_secret(self, name: str) -> str:
        """Make a secret for an annotator, of which the hash is kept; empty where there is one."""
        self.add_annotator(name)
        at = sa.and_(ANNOTATORS.c.name == name, ANNOTATORS.c.secret_hash.is_not(None))
        if self._read(sa.select(ANNOTATORS).where(at)):
            return ""
        secret = secrets.token_urlsafe(24)
        self._set_hash(name, _hash(secret))
        return secret

    def revoke(self, name: str) -> None:
        """End an annotator's secret.

        Raises:
            UserError: Nobody has that name.
        """
        if name not in self.annotators():
            known = ", ".join(self.annotators()) or "nobody"
            raise UserError(f"revoke={name}: nobody of that name answers here; known: {known}.")
        self._set_hash(name, None)

    def by_secret(self, secret: str) -> str | None:
        """Whose secret this is; None of nobody's."""
        # What is compared is a hash of 24 random bytes: its index gives nothing away.
        query = sa.select(ANNOTATORS.c.name).where(ANNOTATORS.c.secret_hash == _hash(secret))
        rows = self._read(query)
        return str(rows[0].name) if rows else None

    # asking and answering

    def claim(
        self, annotator: str, number: int, holding: Sequence[str] = (), holder: str = ""
    ) -> list[Asked]:
        """Lend items to somebody: first those that the same tab had and lost, by a reload.

        Args:
            annotator: Who asks.
            number: Of items at most.
            holding: Claims that the tab still has; their leases begin anew.
            holder: The tab.

        Returns:
            The items, each with a claim that is answered at most once.
        """
        own = sa.and_(CLAIMS.c.annotator == annotator, CLAIMS.c.state == "open")
        with self._writing() as connection:
            renew = sa.update(CLAIMS).where(own, CLAIMS.c.id.in_(holding))
            connection.execute(renew.values(expires=time.time() + LEASE))
            lost = ASKED.where(own, ITEMS.c.is_open, CLAIMS.c.holder == holder)
            lost = lost.where(CLAIMS.c.id.not_in(holding))
            found = [_asked(row) for row in connection.execute(lost.limit(number))]
            for item in self._open_items(connection, annotator, number - len(found)):
                found.append(self._lend(connection, item, annotator, holder))
        return found

    def answer(self, claim: str, annotator: str, rows: Sequence[Row]) -> bool:
        """Keep the answer to a claim.

        Args:
            claim: From `claim`.
            annotator: Who answers.
            rows: Feedback rows; their ids are those of the claim, so that none comes in twice.

        Returns:
            False where it was answered before, and nothing was kept now.

        Raises:
            UserError: There is no such claim of this annotator.
        """
        with self._writing() as connection:
            asked = self._claim_of(connection, claim, annotator)
            if asked.state != "open":
                return False
            self._keep(connection, claim, rows)
            self._settle(connection, asked, "answered", rows, 1)
        return True

    def claimed(self, claim: str, annotator: str) -> Asked:
        """What a claim of an annotator asks.

        Raises:
            UserError: There is no such claim of this annotator.
        """
        with self._reading() as connection:
            return _asked(self._claim_of(connection, claim, annotator))

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Keep rows that answer no claim: of an import, or what somebody did in a chat."""
        for name in {row["annotator"] for row in rows}:
            self.add_annotator(name)
        with self._writing() as connection:
            self._keep(connection, None, rows)

    def take(self, rows: Sequence[Row]) -> list[Row]:
        """Keep rows from elsewhere; of one that is known, a change is a row that supersedes it.

        Args:
            rows: Rows of an import.

        Returns:
            Those that were not here before.
        """
        known, new = {row["id"]: row for row in self.rows()}, []
        for row in rows:
            if row["id"] in known and row != known[row["id"]]:
                row = row | {"id": item_id(row["id"], [row]), "supersedes": row["id"]}
            if row["id"] not in known:
                new.append(row)
                known[row["id"]] = row
        self.add_rows(new)
        return new

    def withdraw(self, annotator: str, holder: str = "") -> Asked | None:
        """Take the last answer of somebody back by rows that supersede it, and ask again.

        Args:
            annotator: Who changed their mind.
            holder: The tab.

        Returns:
            The item, lent anew; None where there is nothing to take back.
        """
        last = (
            ASKED.join(ANSWERS, ANSWERS.c.claim == CLAIMS.c.id)
            .where(CLAIMS.c.annotator == annotator, CLAIMS.c.state == "answered")
            .where(CLAIMS.c.holder == holder)
            .order_by(ANSWERS.c.number.desc())
            .limit(1)
        )
        with self._writing() as connection:
            claim = connection.execute(last).first()
            if claim is None:
                return None
            of_claim = sa.select(ANSWERS.c.content).where(ANSWERS.c.claim == claim.id)
            rows = [row.content for row in connection.execute(of_claim)]
            self._keep(connection, None, [_withdrawal(row) for row in rows])
            self._settle(connection, claim, "withdrawn", rows, -1)
            return self._lend(connection, claim.content, annotator, holder)

    def rows(self) -> list[Row]:
        """All feedback rows in the order in which they came."""
        return self._contents(sa.select(ANSWERS.c.content).order_by(ANSWERS.c.number))

    def progress(self, annotator: str) -> dict[str, int]:
        """How many items somebody has answered, and how many are left for them."""
        number = sa.func.count(CLAIMS.c.item.distinct())
        own = sa.and_(CLAIMS.c.annotator == annotator, CLAIMS.c.state == "answered")
        # The open ones are many: an index counts them, and only those answered are looked up.
        numbers = self._numbers(
            answered=sa.select(number).where(own),
            left=sa.select(sa.func.count(ITEMS.c.id)).where(ITEMS.c.is_open, _is_for(annotator)),
            done=sa.select(number)
            .join(ITEMS, ITEMS.c.id == CLAIMS.c.item)
            .where(own, ITEMS.c.is_open),
        )
        return {"answered": numbers["answered"], "left": numbers["left"] - numbers["done"]}

    def names(self) -> set[str]:
        """Everybody who is named anywhere."""
        found = {row.annotator for row in self._read(sa.select(JOBS.c.annotator).distinct())}
        for table in (CLAIMS, ANSWERS):
            found |= {row[0] for row in self._read(sa.select(table.c.annotator).distinct())}
        return {name for name in found if name} | {*self.annotators()}

    def forget(self, name: str) -> int:
        """Erase somebody: name, texts, chats; of each of their rows an empty one is left.

        Args:
            name: Of the annotator.

        Returns:
            How many rows were emptied.
        """
        unnamed = f"forgotten-{secrets.token_hex(4)}"
        emptied = dict.fromkeys(("prompt", "value", "reason", "seconds", "created_at"))
        emptied |= {"annotator": unnamed, "completions": [], "weight": 0.0}
        with self._writing() as connection:
            of_name = sa.select(ANSWERS.c.id, ANSWERS.c.content).where(ANSWERS.c.annotator == name)
            rows = list(connection.execute(of_name))
            for row in rows:
                values = {"annotator": unnamed, "content": row.content | emptied}
                connection.execute(sa.update(ANSWERS).where(ANSWERS.c.id == row.id).values(values))
            connection.execute(sa.delete(JOBS).where(JOBS.c.annotator == name))
            renamed = sa.update(CLAIMS).where(CLAIMS.c.annotator == name)
            connection.execute(renamed.values(annotator=unnamed))
            connection.execute(sa.delete(ANNOTATORS).where(ANNOTATORS.c.name == name))
        if self.file is not None:  # what a file held stays in it until its pages are written anew
            with self._reading() as connection:
                connection.exec_driver_sql("VACUUM")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            for backup in self.file.parent.glob(f"{self.file.name}.version-*"):
                backup.unlink()
        return len(rows)

    # inside

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        # One writer at a time: two people are never lent the same last item.
        with self.engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("LOCK TABLE claims IN SHARE ROW EXCLUSIVE MODE"))
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield connection

    def _read(self, query: Any) -> list[Any]:
        with self._reading() as connection:
            return list(connection.execute(query))

    def _contents(self, query: Any) -> list[Any]:
        return [row.content for row in self._read(query)]

    def _numbers(self, **queries: Any) -> dict[str, int]:
        labelled = (query.scalar_subquery().label(name) for name, query in queries.items())
        return dict(self._read(sa.select(*labelled))[0]._mapping)

    def _get(self, key: str) -> Any:
        rows = self._read(sa.select(META.c.value).where(META.c.key == key))
        return rows[0].value if rows else None

    def _ignoring(self, table: sa.Table) -> Any:
        dialect = postgresql if self.engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table).on_conflict_do_nothing()

    def _upgrade(self, version: int) -> None:
        if version > tables.SCHEMA_VERSION:
            raise UserError(
                f"database={self.file or self.engine.url}: has version {version}, and this "
                f"rlhf-recipes knows {tables.SCHEMA_VERSION}; install a newer one."
            )
        if version < tables.SCHEMA_VERSION and self.file is not None:
            with self._reading() as connection:
                connection.exec_driver_sql("VACUUM INTO ?", (f"{self.file}.version-{version}",))
        for number in range(version + 1, tables.SCHEMA_VERSION + 1):
            with self._writing() as connection:
                for statement in tables.UPGRADES[number]:
                    connection.execute(sa.text(statement))
                at = META.c.key == "schema_version"
                connection.execute(sa.update(META).where(at).values(value=number))

    def _set_hash(self, name: str, value: str | None) -> None:
        with self._writing() as connection:
            at = sa.update(ANNOTATORS).where(ANNOTATORS.c.name == name)
            connection.execute(at.values(secret_hash=value))

    def _keep(self, connection: Connection, claim: str | None, rows: Sequence[Row]) -> None:
        for row in rows:
            values = {"id": row["id"], "claim": claim, "annotator": row["annotator"]}
            connection.execute(self._ignoring(ANSWERS).values(values | {"content": row}))

    def _settle(
        self, connection: Connection, claim: Any, state: str, rows: Sequence[Row], change: int
    ) -> None:
        connection.execute(sa.update(CLAIMS).where(CLAIMS.c.id == claim.id).values(state=state))
        if any(row["weight"] for row in rows):
            number = ITEMS.c.num_answered + change
            values = {"num_answered": number, "is_open": number < ITEMS.c.num_wanted}
            connection.execute(sa.update(ITEMS).where(ITEMS.c.id == claim.item).values(values))

    def _open_items(self, connection: Connection, annotator: str, number: int) -> list[Item]:
        now = time.time()
        # Not what they had in hand before, nor what others hold or have answered often enough.
        own = sa.select(CLAIMS.c.item).where(
            CLAIMS.c.annotator == annotator,
            sa.or_(CLAIMS.c.state == "answered", CLAIMS.c.expires > now),
        )
        lent = sa.select(sa.func.count()).where(
            CLAIMS.c.item == ITEMS.c.id,
            CLAIMS.c.annotator != annotator,
            CLAIMS.c.state == "open",
            CLAIMS.c.expires > now,
        )
        query = (
            sa.select(ITEMS.c.content)
            .where(ITEMS.c.is_open, ITEMS.c.id.not_in(own))
            .where(_is_for(annotator))
            .where(ITEMS.c.num_answered + lent.scalar_subquery() < ITEMS.c.num_wanted)
            .order_by(ITEMS.c.position)
            .limit(number)
        )
        return [row.content for row in connection.execute(query)] if number > 0 else []

    def _lend(self, connection: Connection, item: Item, annotator: str, holder: str) -> Asked:
        order = list(range(len(item["completions"])))
        random.Random(f"{item['id']} {annotator}").shuffle(order)
        values: Any = {"id": secrets.token_urlsafe(12), "item": item["id"], "annotator": annotator}
        values |= {"holder": holder, "shown_order": order, "expires": time.time() + LEASE}
        connection.execute(sa.insert(CLAIMS).values(values))
        return {"claim": values["id"], "item": item, "shown_order": order}

    def _claim_of(self, connection: Connection, claim: str, annotator: str) -> Any:
        at = ASKED.where(CLAIMS.c.id == claim, CLAIMS.c.annotator == annotator)
        row = connection.execute(at).first()
        if row is None:
            raise UserError(f"claim={claim}: nothing of that name was asked of {annotator}.")
        return row


def _asked(row: Any) -> Asked:
    return {"claim": row.id, "item": row.content, "shown_order": row.shown_order}


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _is_for(annotator: str) -> Any:
    """Whether an item may be asked of somebody: what repeats another, of who answered that."""
    answered = CLAIMS.c.annotator == annotator, CLAIMS.c.state == "answered"
    first = sa.select(CLAIMS.c.item).where(*answered)
    return ITEMS.c.repeats.is_(None) | ITEMS.c.repeats.in_(first)


def _withdrawal(row: Row) -> Row:
    emptied = dict.fromkeys(("value", "strength", "reason", "seconds"))
    names = {"id": f"{row['id']}-withdrawn", "supersedes": row["id"], "weight": 0.0}
    return row | emptied | names | {"created_at": datetime.now(UTC).isoformat("T", "milliseconds")}
