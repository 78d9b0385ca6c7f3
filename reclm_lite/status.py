"""The status of a workspace: what it contains, what is stale, and the next command."""

from dataclasses import asdict, dataclass

from .errors import MissingArtefactError, WorkspaceError, shell_word
from .workspace import Workspace


@dataclass(frozen=True)
class Stage:
    """The state of one stage: 'ready', 'stale', 'damaged', 'missing' or 'not possible'. `command` makes or repairs
    it."""

    name: str
    state: str
    detail: str
    command: str


@dataclass(frozen=True)
class Status:
    dataset: str
    stages: list[Stage]
    next_command: str

    def as_dict(self) -> dict:
        return {"dataset": self.dataset, "stages": [asdict(stage) for stage in self.stages], "next": self.next_command}


def workspace_status(ws: Workspace) -> Status:
    """Check the stages in order. The next command is that of the first stage that is not ready."""
    from .data.dataset import load_interactions

    w = f"-w {ws.argument}"
    stages: list[Stage] = []
    dataset = ""
    told: dict = {}  # of every artefact once
    try:
        interactions = load_interactions(ws)
        dataset = interactions.name
        detail = (
            f"{interactions.n_users:,} users, {interactions.n_items:,} items, {len(interactions.users):,} interactions"
        )
        stages.append(Stage("interactions", "ready", detail, f"reclm import FORMAT SOURCE {w}"))
    except MissingArtefactError:
        stages.append(Stage("interactions", "missing", "nothing imported", f"reclm import FORMAT SOURCE {w}"))
    stages.append(_artefact(ws, told, "split", "matrices/split", f"reclm split {w}", _split_detail))
    stages.append(_artefact(ws, told, "item vectors", "vectors/items", f"reclm embed items {w}", _vectors_detail))
    stages.append(_artefact(ws, told, "model lightgcn", "models/lightgcn", f"reclm fit lightgcn {w}", _created))
    stages.append(_artefact(ws, told, "neighbors", "matrices/neighbors", f"reclm neighbors {w}", _created))
    stages.append(_profiles(ws, "user"))
    stages.append(_profile_vectors(ws, told, "user"))
    for path in sorted((ws.root / "models").glob("*.safetensors")):
        name = path.stem
        if name == "lightgcn":
            continue
        model, _, profiles = name.partition("+")
        fit = f"reclm fit {shell_word(model)} {w}" + (f" --profiles {shell_word(profiles)}" if profiles else "")
        stages.append(_artefact(ws, told, f"model {name}", f"models/{name}", fit, _created))
    if not any(stage.name.startswith("model lightgcn+") for stage in stages):
        fit = f"reclm fit lightgcn {w} --profiles users"
        stages.append(Stage("model with profiles", "missing", "no model uses the profiles yet", fit))
    if dataset and not _any_text(ws):
        stages = [_without_text(stage) for stage in stages]
    pending = [stage for stage in stages if stage.state not in ("ready", "not possible")]
    return Status(dataset, stages, pending[0].command if pending else f"reclm evaluate {w}")


# What is made of the items' texts.
_NEED_TEXT = ("item vectors", "user profiles", "user profile vectors", "model with profiles")


def _any_text(ws: Workspace) -> bool:
    query = "SELECT 1 FROM items WHERE trim(title || category || subcategory || description) != '' LIMIT 1"
    return ws.db.execute(query).fetchone() is not None


def _without_text(stage: Stage) -> Stage:
    """Mark a stage as not possible if it needs texts and the data set has none."""
    if stage.state != "missing" or stage.name not in _NEED_TEXT:
        return stage
    return Stage(stage.name, "not possible", "the items have no texts", stage.command)


def _artefact(ws: Workspace, told: dict, label: str, name: str, command: str, describe) -> Stage:
    if not ws.has(name):
        return Stage(label, "missing", "", command)
    try:
        provenance = ws.provenance(name, made_by=command)
        stale = ws.stale_inputs(name, told)
    except WorkspaceError as error:
        return Stage(label, "damaged", str(error), command)
    if stale:
        return Stage(label, "stale", f"changed since: {', '.join(stale)}", command)
    return Stage(label, "ready", describe(provenance), command)


def _created(provenance: dict) -> str:
    return f"made {provenance['created'][:16].replace('T', ' ')}"


def _split_detail(provenance: dict) -> str:
    return f"method {provenance['params'].get('method', '?')}, seed {provenance['params'].get('seed', '-')}"


def _vectors_detail(provenance: dict) -> str:
    encoder = provenance["params"].get("encoder", {})
    return f"encoder {encoder.get('name', '?') if isinstance(encoder, dict) else encoder}"


def _profiles(ws: Workspace, side: str) -> Stage:
    counts = dict(ws.db.execute("SELECT status, COUNT(*) FROM profiles WHERE side=? GROUP BY status", (side,)))
    command = f"reclm profile {side}s -w {ws.argument}"
    if not counts:
        return Stage(f"{side} profiles", "missing", "", command)
    detail = ", ".join(f"{count:,} {status}" for status, count in sorted(counts.items()))
    return Stage(f"{side} profiles", "ready", detail, command)


def _profile_vectors(ws: Workspace, told: dict, side: str) -> Stage:
    from .profiles.profile_vectors import profile_vectors_stale

    name, command = f"vectors/{side}_profiles", f"reclm embed profiles -w {ws.argument}"
    if not ws.has(name):
        return Stage(f"{side} profile vectors", "missing", "", command)
    if profile_vectors_stale(ws, side):
        return Stage(f"{side} profile vectors", "stale", "profiles changed since they were embedded", command)
    return _artefact(ws, told, f"{side} profile vectors", name, command, _vectors_detail)
