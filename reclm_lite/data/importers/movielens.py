"""The format `movielens`: a folder of the GroupLens film ratings, in any of the three published layouts.

    ratings.csv, movies.csv     latest, latest-small, 20M, 25M, 32M
    ratings.dat, movies.dat     1M, 10M (fields joined by `::`)
    u.data, u.item              100K

In the two older layouts, films are Latin-1. Genres become the item's category. Left out: tags, links, users' ages.
"""

from pathlib import Path

from ...errors import InputError
from ..dataset import Imported
from .files import find_folder, within_folder
from .limits import Limits
from .numbering import number_all
from .staging import Reader, Staging, ident, quoted

_EXPECTED = "ratings.csv and movies.csv (or ratings.dat and movies.dat, or u.data and u.item)"
_FILES = ("ratings.csv", "movies.csv", "ratings.dat", "movies.dat", "u.data", "u.item")
_RATINGS = ("userId", "movieId", "rating", "timestamp")
_GENRES_100K = (
    "",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


def import_movielens(
    source: Path,
    *,
    min_rating: float | None = None,
    min_user: int | None = None,
    min_item: int | None = None,
    name: str | None = None,
    limits: Limits | None = None,
) -> Imported:
    """Read a folder of film ratings; titles keep their year, genres read `Adventure, Animation`.

    min_rating: keep interactions rated at least this (4 is the usual limit for "liked").
    min_user, min_item: keep users and items with at least this many, repeated until nothing changes.
    limits: bounds on the files, by default those of Limits().
    """
    folder = find_folder(Path(source), "movielens", _EXPECTED)
    with Staging(*within_folder(folder, *_FILES), limits=limits) as staging:
        if (folder / "ratings.csv").exists():
            ratings, films, genres = _latest(staging, folder)
        elif (folder / "ratings.dat").exists():
            ratings, films, genres = _colons(staging, folder)
        elif (folder / "u.data").exists():
            ratings, films, genres = _hundred_thousand(staging, folder)
        else:
            found = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
            raise InputError(f"{folder}: expected {_EXPECTED}, found {found}; give the folder that contains them")
        staging.add_interactions(ratings, user="userId", item="movieId", rating="rating", time="timestamp")
        films.require("movieId", "title")
        staging.add_texts(films, item="movieId", title=ident("title"), category=genres)
        return number_all(
            staging,
            name=name or folder.resolve().name,
            format="movielens",
            options={},
            min_rating=min_rating,
            min_user=min_user,
            min_item=min_item,
        )


def _latest(staging: Staging, folder: Path) -> tuple[Reader, Reader, str]:
    ratings = staging.csv(folder / "ratings.csv", delimiter=",")
    films = staging.csv(folder / "movies.csv", delimiter=",")
    films.require("genres")
    return ratings, films, "CASE WHEN genres <> '(no genres listed)' THEN replace(genres, '|', ', ') END"


def _colons(staging: Staging, folder: Path) -> tuple[Reader, Reader, str]:
    ratings = _split_lines(staging, folder / "ratings.dat", _RATINGS, "utf-8")
    films = _split_lines(staging, folder / "movies.dat", ("movieId", "title", "genres"), "latin-1")
    return ratings, films, "CASE WHEN genres <> '(no genres listed)' THEN replace(genres, '|', ', ') END"


def _split_lines(staging: Staging, path: Path, columns: tuple[str, ...], encoding: str) -> Reader:
    lines = staging.lines(path, encoding=encoding)
    staging.refuse(
        lines,
        f"len(string_split(line, '::')) <> {len(columns)}",
        "line",
        f"expected {len(columns)} fields joined by '::', found {{value}}; fix the line",
    )
    fields = ", ".join(f"parts[{number}] AS {ident(name)}" for number, name in enumerate(columns, 1))
    return Reader(f"(SELECT {fields} FROM (SELECT string_split(line, '::') AS parts FROM {lines.sql}))", path, columns)


def _hundred_thousand(staging: Staging, folder: Path) -> tuple[Reader, Reader, str]:
    ratings = staging.csv(folder / "u.data", delimiter="\t", quote="", columns=_RATINGS)
    flags = [f"genre {number}" for number in range(len(_GENRES_100K))]
    films = staging.csv(
        folder / "u.item",
        delimiter="|",
        quote="",
        encoding="latin-1",
        columns=["movieId", "title", "released", "released on video", "link", *flags],
    )
    chosen = ", ".join(
        f"CASE WHEN {ident(flag)} = '1' THEN {quoted(genre)} END"
        for flag, genre in zip(flags, _GENRES_100K, strict=True)
        if genre
    )
    return ratings, films, f"concat_ws(', ', {chosen})"
