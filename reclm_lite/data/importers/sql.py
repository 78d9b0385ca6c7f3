"""Pieces of SQL that importers share."""


def quoted(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def ident(name: str) -> str:
    """An SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def seconds(column: str) -> str:
    """SQL: a text column as BIGINT seconds since 1970, NULL if it is not a time.

    Numbers beyond the year 5138 are refused: they are milliseconds mistaken for seconds.
    """
    number = f"try_cast({column} AS DOUBLE)"
    return (
        f"CASE WHEN {number} IS NOT NULL THEN CASE WHEN abs({number}) < 1e11 THEN CAST(floor({number}) AS BIGINT) END "
        f"ELSE CAST(floor(epoch(try_cast({column} AS TIMESTAMP))) AS BIGINT) END"
    )
