"""`reclm embed`"""

from pathlib import Path

import click

from ._options import common, progress_bar, say, threads_option, workspace_option


@click.command("embed")
@click.argument("what", type=click.Choice(["items", "profiles"]))
@workspace_option
@click.option("--encoder", type=click.Path(path_type=Path), help="An embedding GGUF [default: the bundled MiniLM].")
@threads_option
@common
def command(root: Path, what: str, encoder: Path | None, n_threads: int | None) -> None:
    """Turn item texts or profiles into vectors. Only changed texts are computed.

    \b
    Example:
      reclm embed items -w shop
    """
    from ..text.encoder import TextEncoder
    from ..workspace import Workspace

    with Workspace.open(root) as ws, ws.writing(), TextEncoder(encoder, n_threads=n_threads) as text_encoder:
        if what == "items":
            from ..text.item_vectors import embed_items as embed
        else:
            from ..profiles.profile_vectors import embed_profiles as embed
        with progress_bar(f"embedding {what}") as update:
            counts = embed(ws, text_encoder, progress=update)
    say(counts.sentence())
