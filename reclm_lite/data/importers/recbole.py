"""The format `recbole`: atomic files, tab-separated, whose header gives `name:type`.

    NAME.inter   user_id:token  item_id:token  [rating:float]  [timestamp:float]
    NAME.item    item_id:token  and texts (optional)
    NAME.user    user_id:token (optional; only lists the users)

Options select fields with other names. All other fields are ignored.
"""

from pathlib import Path

from ...errors import InputError
from ..dataset import Imported
from .files import find_file, within_folder
from .headers import check_names
from .limits import Limits
from .numbering import number_all
from .staging import Reader, Staging, ident

# The names under which the published data sets of this format keep their texts, tried in this order.
_USUAL = {
    "title_column": ("title", "movie_title", "item_name", "name", "business_name"),
    "category_column": ("category", "categories", "genre", "genres", "class"),
    "subcategory_column": ("subcategory", "sub_category", "subvert"),
    "description_column": ("description", "abstract"),
}


def import_recbole(
    source: Path,
    *,
    user_column: str = "user_id",
    item_column: str = "item_id",
    time_column: str | None = None,
    rating_column: str | None = None,
    title_column: str | None = None,
    category_column: str | None = None,
    subcategory_column: str | None = None,
    description_column: str | None = None,
    min_rating: float | None = None,
    min_user: int | None = None,
    min_item: int | None = None,
    name: str | None = None,
    limits: Limits | None = None,
) -> Imported:
    """Read atomic files: `source` is the .inter file, or a folder with exactly one.

    time_column, rating_column: by default `timestamp` and `rating` if the header has them.
    title_column and so on: by default the first common name that the .item header has; the manifest records it.
    min_rating, min_user, min_item: as for the format table.
    limits: bounds on the files, by default those of Limits().
    """
    inter = _interactions_file(Path(source))
    given = {
        "title_column": title_column,
        "category_column": category_column,
        "subcategory_column": subcategory_column,
        "description_column": description_column,
    }
    items_file, users_file = within_folder(
        inter.parent, inter.with_suffix(".item").name, inter.with_suffix(".user").name
    )
    with Staging(inter, items_file, users_file, limits=limits) as staging:
        reader = _open(staging, inter)
        rating = rating_column or ("rating" if "rating" in reader.columns else None)
        time = time_column or ("timestamp" if "timestamp" in reader.columns else None)
        staging.add_interactions(reader, user=user_column, item=item_column, rating=rating, time=time)
        columns: dict[str, str | None] = {}
        if items_file.exists():
            items = _open(staging, items_file)
            columns = {
                key: value or next((usual for usual in _USUAL[key] if usual in items.columns), None)
                for key, value in given.items()
            }
            items.require(*columns.values())
            staging.add_texts(
                items,
                item=item_column,
                **{key.removesuffix("_column"): ident(value) for key, value in columns.items() if value},
            )
        if users_file.exists():
            users = _open(staging, users_file)
            users.require(user_column)
            staging.copy(users, f"INSERT INTO listed_users SELECT DISTINCT {ident(user_column)} FROM {users.sql}")
        return number_all(
            staging,
            name=name or inter.stem,
            format="recbole",
            options={
                "user_column": user_column,
                "item_column": item_column,
                "rating_column": rating,
                "time_column": time,
                **columns,
            },
            min_rating=min_rating,
            min_user=min_user,
            min_item=min_item,
        )


def _interactions_file(source: Path) -> Path:
    if not source.is_dir():
        return find_file(source)
    files = sorted(source.glob("*.inter"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{source}: expected one .inter file, found {found}; name the file itself")
    return within_folder(source, files[0].name)[0]


def _open(staging: Staging, path: Path) -> Reader:
    """A reader with column names without `:type`."""
    typed = staging.csv(path, delimiter="\t", quote="")
    untyped = [name for name in typed.columns if ":" not in name]
    if untyped:
        raise InputError(
            f"{path}, line 1: expected columns as name:type, such as user_id:token, found {untyped[0]!r}; fix the "
            "header"
        )
    names = tuple(name.rpartition(":")[0] for name in typed.columns)
    check_names(f"{path}, line 1", names, staging.limits)
    renamed = ", ".join(f"{ident(full)} AS {ident(name)}" for full, name in zip(typed.columns, names, strict=True))
    return Reader(f"(SELECT {renamed} FROM {typed.sql})", path, names)
