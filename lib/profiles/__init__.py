"""Profiles: one TOML table says which model, which transcoders and how much of everything.

`load("nano")` reads the table of that name beside this file; `load("path/to/my.toml")` reads yours.
Everything is checked before work starts: an unknown key, a wrong type or an impossible value is a
`ProfileError` of one line that names the file and the key.
"""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ValidationError

from lib.book import files
from lib.book.paths import ROOT, replacing
from lib.profiles.tables import STUDIES, Profile

FOLDER = Path(__file__).parent


class ProfileError(ValueError):
    """A profile that cannot be used; the message is one line."""


def names() -> list[str]:
    """The profiles that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(profile: str, *studies: str) -> Profile:
    """The profile of that name, or the one in that `.toml` file.

    With some `studies` the tables of all others are left out, so that what is made for one study does not hang on the settings
    of another.
    """
    path = Path(profile) if profile.endswith(".toml") else FOLDER / f"{profile}.toml"
    if not path.exists():
        raise ProfileError(f"{profile}: no such profile; use one of {', '.join(names())}, or the path of a .toml file")
    try:
        said = files.text(path)
    except ValueError as error:
        raise ProfileError(str(error)) from None
    try:
        table = tomllib.loads(said)
    except (ValueError, RecursionError) as error:  # also of a number too long for Python
        raise ProfileError(f"{path}: not TOML: {error!s:.300}; mend that line") from None
    if table.get("name", path.stem) != path.stem:
        raise ProfileError(f"{path}: name is {table['name']!r}, but a profile is called as its file; leave name out")
    try:
        found = Profile(**{**table, "name": path.stem})
    except ValidationError as error:
        raise ProfileError(f"{path}: {_one_line(error)}") from None
    return found.model_copy(update={other: None for other in STUDIES if studies and other not in studies})


def study(profile: Profile, name: str) -> BaseModel:
    """The profile's table of a study; `ValueError` where there is none."""
    if (table := getattr(profile, name)) is None:
        raise ValueError(f"profile {profile.name}: has no table [{name}], which this study is about; add it")
    return table


def lacks(profile: Profile, study: str | None) -> str | None:
    """The table without which a chapter about `study` is left out, if the profile lacks it; of several any one will do."""
    tables = (study or "").split()
    return None if not tables or any(getattr(profile, table) is not None for table in tables) else tables[0]


def claim(profile: Profile, source: str) -> None:
    """Put the profile's mark on its data, or refuse where they are another file's of the same name."""
    file = (Path(source) if source.endswith(".toml") else FOLDER / f"{source}.toml").resolve()
    said = str(file.relative_to(ROOT) if file.is_relative_to(ROOT) else file)
    mark = profile.paths.data / ".profile"
    other = mark.read_text(encoding="utf-8").strip() if mark.exists() else None
    if other == said:
        return
    if other and (ROOT / other).exists():
        raise ProfileError(
            f"{source}: data/{profile.name} and build/{profile.name} are those of {other}; give this file another name"
        )
    with replacing(mark) as temporary:
        temporary.write_text(f"{said}\n", encoding="utf-8")


def _one_line(error: ValidationError) -> str:
    """Every problem of a profile: the key, what is wrong, the value found."""
    problems = []
    for problem in error.errors():
        key = f"{'.'.join(map(str, problem['loc'])):.80}"
        if problem["type"] == "extra_forbidden":
            known = _fields_at(problem["loc"][:-1])
            problems.append(f"unknown key {key!r}; known there: {', '.join(known)}")
        elif problem["type"] == "missing":
            problems.append(f"key {key!r} is missing; add it")
        elif problem["type"] == "value_error":
            problems.append(f"{problem['ctx']['error']!s:.300}")
        else:
            problems.append(f"{key}: {problem['msg']:.300}, not {problem['input']!r:.80}")
    return "; ".join(problems[:9])


def _fields_at(location: tuple) -> list[str]:
    """The keys of the table at a location in a profile."""
    table = Profile
    for key in location:
        annotation = table.model_fields[key].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        table = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(table.model_fields)
