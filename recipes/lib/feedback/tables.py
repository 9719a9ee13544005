"""The tables of a feedback store, and how a database is opened.

meta (schema_version, settings); jobs (what is to be sampled); items (what is asked); annotators;
claims (an item lent to one person, answered at most once); answers (feedback rows).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

SCHEMA_VERSION = 1
# SQL that takes a database of the version before to the one that is the key.
UPGRADES: dict[int, tuple[str, ...]] = {}

TABLES = sa.MetaData()
META = sa.Table(
    "meta", TABLES, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.JSON)
)
JOBS = sa.Table(
    "jobs",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("item", sa.Text, unique=True),  # that it becomes
    # waiting, done, failed
    sa.Column("state", sa.Text, nullable=False, index=True, default="waiting"),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("annotator", sa.Text),  # of a chat, who waits for a reply
)
ITEMS = sa.Table(
    "items",
    TABLES,
    sa.Column("position", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, unique=True, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("repeats", sa.Text),  # the item that the same person is asked again by this one
    sa.Column("num_wanted", sa.Integer, nullable=False),
    sa.Column("num_answered", sa.Integer, nullable=False, default=0),
    sa.Column("is_open", sa.Boolean, nullable=False, default=True),
    sa.Index("items_open", "is_open", "position", "repeats"),
)
ANNOTATORS = sa.Table(
    "annotators",
    TABLES,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("secret_hash", sa.Text, unique=True),
)
CLAIMS = sa.Table(
    "claims",
    TABLES,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("item", sa.Text, nullable=False, index=True),
    sa.Column("annotator", sa.Text, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),  # the tab that shows it
    sa.Column("shown_order", sa.JSON, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("state", sa.Text, nullable=False, default="open"),  # open, answered, withdrawn
    sa.Index("claims_of", "annotator", "item"),
)
ANSWERS = sa.Table(
    "answers",
    TABLES,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("id", sa.Text, unique=True, nullable=False),
    sa.Column("claim", sa.Text, index=True),
    sa.Column("annotator", sa.Text, nullable=False, index=True),
    sa.Column("content", sa.JSON, nullable=False),
)


def open_engine(url: str | Path) -> Engine:
    """Connect to a database.

    Args:
        url: Path of a SQLite file, or a URL.

    Returns:
        The engine; nothing is asked of the database yet.
    """
    name = str(url) if "://" in str(url) else f"sqlite:///{url}"
    engine = sa.create_engine(name.replace("postgresql://", "postgresql+psycopg://"))
    if engine.dialect.name == "sqlite":
        sa.event.listen(engine, "connect", _prepare)
        sa.event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, see _begin
    for pragma in "journal_mode=WAL synchronous=FULL busy_timeout=10000 secure_delete=ON".split():
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # At once: a transaction that reads first and writes then would fail where two do so.
    if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
