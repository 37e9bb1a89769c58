"""Saved questions: a page of similar pictures under a name, to be asked again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils.asgi import Response
from datasette.utils.sqlite import sqlite3

from ..explore.questions import (
    NAME,
    delete_question,
    rename_question,
    save_question,
    saved_questions,
)
from .answers import ask_database, page, tells_errors, wants_json
from .asked import query_string, read_asked, show
from .curate import actor_id, change, may_curate, require_curator
from .forms import Form, read_form
from .question import PageError, Place, find_place

if TYPE_CHECKING:
    from datasette.app import Datasette

SHOWN = 100  # a page


@tells_errors
async def questions(datasette: Datasette, request: Any) -> Response:
    """The saved questions of a collection; a POST saves, renames or deletes one."""
    place = await find_place(datasette, request)
    change_name = request.url_vars.get("change")
    if request.method == "POST":
        await require_curator(place)
        form = await read_form(request, 0)
        answered = await _changed(place, change_name, form)
        if wants_json(request):
            return Response.json({"ok": True, **answered})
        return Response.redirect(place.url("questions"))
    if change_name or request.method not in ("GET", "HEAD"):
        raise PageError(405, "Changes are made by POST")
    offset = _number(request.args.get("_next") or "0", "_next must be a whole number")
    every = await ask_database(place, lambda conn: saved_questions(conn, place.collection))
    saved = every[offset : offset + SHOWN]
    # One after the other: others are answered in between.
    shown = [await show(place, one.question) for one in saved]
    next_url = None
    if offset + SHOWN < len(every):
        page_url = place.path("questions.json" if wants_json(request) else "questions")
        pairs = [*place.named, ("_next", str(offset + SHOWN))]
        next_url = f"{page_url}?{urlencode(pairs)}"
    if wants_json(request):
        rows = [
            {
                **vars(one),
                "url": as_shown.url and datasette.absolute_url(request, as_shown.url),
                "words": as_shown.words,
                "problem": as_shown.problem or None,
            }
            for one, as_shown in zip(saved, shown, strict=True)
        ]
        next_url = next_url and datasette.absolute_url(request, next_url)
        return Response.json({"ok": True, "questions": rows, "next_url": next_url})
    context = {
        "saved": list(zip(saved, shown, strict=True)),
        "next_url": next_url,
        "may_curate": await may_curate(place),
        "rename_url": place.url("questions/rename"),
        "delete_url": place.url("questions/delete"),
        "name_length": NAME,
    }
    return await page(place, "image_similarity_questions.html", context)


async def saving(place: Place, question: Any) -> dict[str, Any]:
    """What the form that saves a question needs; nothing for those who may not."""
    if not await may_curate(place):
        return {}
    return {
        "save_url": place.url("questions"),
        "save_question": query_string(question),
        "name_length": NAME,
    }


async def _changed(place: Place, what: str | None, form: Form) -> dict[str, Any]:
    """Do what a form says; what to tell of it. Raises PageError."""
    if what == "rename":
        id, name = _id(form), _name(form)
        await _change_one(place, lambda conn: _rename(conn, place, id, name))
        return {"id": id, "name": name}
    if what == "delete":
        id = _id(form)
        await _change_one(place, lambda conn: _delete(conn, place, id))
        return {"id": id}
    name = _name(form)
    question, rows = await read_asked(place, form.fields.get("question", ""))
    if not rows and not question.texts:
        raise PageError(
            400, "Only questions that ask with rows of the table, or words, can be saved"
        )
    text = query_string(question)
    actor = actor_id(place)

    def save(conn: sqlite3.Connection) -> int:
        return save_question(conn, place.collection, name, text, actor)

    return {"id": await change(place, save), "name": name, "question": text}


async def _change_one(place: Place, write: Any) -> None:
    if not await change(place, write):
        raise PageError(404, "There is no such question: it may have been deleted")


def _rename(conn: sqlite3.Connection, place: Place, id: int, name: str) -> bool:
    return rename_question(conn, place.collection, id, name)


def _delete(conn: sqlite3.Connection, place: Place, id: int) -> bool:
    return delete_question(conn, place.collection, id)


def _id(form: Form) -> int:
    return _number(form.fields.get("id", ""), "Say which question: its id")


def _number(text: str, problem: str) -> int:
    """Raises PageError 400."""
    if not (text.isascii() and text.isdecimal() and len(text) < 16):
        raise PageError(400, problem)
    return int(text)


def _name(form: Form) -> str:
    name = " ".join(form.fields.get("name", "").split())
    if not 0 < len(name) <= NAME or not name.isprintable():
        raise PageError(400, f"A name has 1 to {NAME} characters")
    return name
