"""Names of stored models, and the command that makes one."""

from ..errors import InputError, shell_word
from ..workspace import Workspace

PROFILE_CHOICES = ("none", "users", "items", "both")


def artefact_name(model: str, profiles: str = "none") -> str:
    """`models/<model>`, or `models/<model>+<profiles>`."""
    if profiles not in PROFILE_CHOICES:
        raise InputError(f"profiles: expected one of {', '.join(PROFILE_CHOICES)}, found {profiles!r}")
    return f"models/{model}" if profiles == "none" else f"models/{model}+{profiles}"


def split_name(name: str) -> tuple[str, str]:
    """The inverse of `artefact_name`: (model, profiles)."""
    model, _, profiles = name.removeprefix("models/").partition("+")
    return model, profiles or "none"


def fit_command(ws: Workspace, model: str, profiles: str = "none") -> str:
    """The command that makes a fitted model."""
    option = "" if profiles == "none" else f" --profiles {shell_word(profiles)}"
    return f"reclm fit {shell_word(model)}{option} -w {ws.argument}"


def fitted_models(ws: Workspace) -> list[tuple[str, str]]:
    """(model, profiles) of every model stored in the workspace, sorted."""
    return sorted(
        split_name(path.name.removesuffix(".safetensors")) for path in (ws.root / "models").glob("*.safetensors")
    )
