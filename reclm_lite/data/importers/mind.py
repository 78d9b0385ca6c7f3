"""The format `mind`: Microsoft News, a folder with behaviors.tsv and news.tsv (neither has a header).

An interaction is an article of a user's click history or an impression that was clicked (`N123-1`).
The history has no times: its articles get the seconds just before the user's first impression, in order. Left out:
impressions that were not clicked, and the entities of the articles.
"""

from pathlib import Path

from ...errors import InputError
from ..dataset import Imported
from .files import find_folder, within_folder
from .limits import Limits
from .numbering import number_all
from .staging import Reader, Staging, ident

_BEHAVIORS = ("impression id", "user", "time", "history", "impressions")
_NEWS = ("item", "category", "subcategory", "title", "abstract", "url", "title entities", "abstract entities")
_TIME = "epoch(try_strptime(time, ['%m/%d/%Y %I:%M:%S %p', '%Y-%m-%d %H:%M:%S']))"


def import_mind(
    source: Path,
    *,
    history: bool = True,
    min_user: int | None = None,
    min_item: int | None = None,
    name: str | None = None,
    limits: Limits | None = None,
) -> Imported:
    """Read one part of MIND, such as the unpacked MINDsmall_train.

    history: also read the click histories, not only the clicked impressions.
    min_user, min_item: keep users and items with at least this many, repeated until nothing changes.
    limits: bounds on the files, by default those of Limits().
    Users with neither history nor click are kept and counted.
    """
    folder = find_folder(Path(source), "mind", "behaviors.tsv and news.tsv")
    behaviors_file, news_file = within_folder(folder, "behaviors.tsv", "news.tsv")
    for path in (behaviors_file, news_file):
        if not path.exists():
            raise InputError(
                f"{folder} has no {path.name}: the format mind expects behaviors.tsv and news.tsv in one folder"
            )
    with Staging(behaviors_file, news_file, limits=limits) as staging:
        behaviors = staging.csv(behaviors_file, delimiter="\t", quote="", columns=_BEHAVIORS)
        news = staging.csv(news_file, delimiter="\t", quote="", columns=_NEWS)
        _check(staging, behaviors)
        clicked = (
            f"SELECT user, shown[:-3] AS item, {_TIME} AS time FROM "
            f"(SELECT user, time, unnest(string_split_regex(trim(impressions), ' +')) AS shown FROM {behaviors.sql}) "
            "WHERE ends_with(shown, '-1')"
        )
        staging.copy(
            behaviors,
            f"INSERT INTO raw SELECT user, item, CAST(CAST(time AS BIGINT) AS VARCHAR), NULL, NULL FROM ({clicked})",
        )
        if history:
            # Within one part all lines of a user have the same history; take the longest.
            staging.copy(
                behaviors,
                f"""INSERT INTO raw
                SELECT user, articles[n], CAST(CAST(first AS BIGINT) - len(articles) + n - 1 AS VARCHAR), NULL, NULL
                FROM (SELECT user, articles, first, unnest(generate_series(1, len(articles))) AS n FROM
                      (SELECT user, min(time_seconds) AS first,
                              string_split_regex(trim(max_by(history, (len(history), history))), ' +') AS articles
                       FROM (SELECT user, history, {_TIME} AS time_seconds FROM {behaviors.sql})
                       GROUP BY user HAVING max(len(trim(coalesce(history, '')))) > 0))""",
            )
        staging.copy(behaviors, f"INSERT INTO listed_users SELECT DISTINCT user FROM {behaviors.sql}")
        staging.add_texts(
            news,
            item="item",
            **{field: ident(field) for field in ("title", "category", "subcategory")},
            description=ident("abstract"),
        )
        staging.notes.append(
            "times of the click history are invented: the seconds before the user's first impression, in order"
        )
        return number_all(
            staging,
            name=name or folder.resolve().name,
            format="mind",
            options={"history": history},
            min_user=min_user,
            min_item=min_item,
        )


def _check(staging: Staging, behaviors: Reader) -> None:
    staging.refuse(behaviors, "coalesce(user, '') = ''", "NULL", "the second field, the user, is empty; fix the line")
    staging.refuse(
        behaviors,
        f"{_TIME} IS NULL",
        "time",
        "the third field, the time, holds {value}, expected for example 11/11/2019 9:05:58 AM; fix the line",
    )
    staging.refuse(
        behaviors,
        "NOT regexp_full_match(coalesce(trim(impressions), ''), '([^ ]+-[01]( +|$))*')",
        "impressions[:60]",
        "the fifth field has impressions without a label -0 or -1: {value}; the unlabelled test part of MIND cannot "
        "be imported",
    )
