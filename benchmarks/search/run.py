"""Compare searches: our strategies and three peers on the same tasks, in one table.

    python benchmarks/search/run.py [--tasks t20,t60,t150,resnet20,minilm] [--strategies auto,basic] [--tracks fallback,any]
        [--objectives latency,size] [--peers inc,nncf,ort] [--out benchmarks/.cache/results] [--limit 1800]

Every contestant is a child process pinned to one core; its CPU seconds and peak memory are its own. What it hands back is judged by one
judge. A contestant that fails, is cut off or is not there is a row with the reason. Rows are files in the folder of --out, and the table is
made of all of them: a run in pieces gives one table. `--strategies ""` or `--peers ""` leaves that part out.
"""

from __future__ import annotations

import argparse
import datetime as dt
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import table
from tasks import CACHE, TASKS, MissingTaskError, prepare

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "onnxruntime"))

from timing import machine  # noqa: E402 - the neighbour's folder is no package

ENVIRONMENTS = {"inc": "inc_2x", "nncf": "nncf_openvino", "ort": "ort_static"}
# What --peers takes -> name in the table and setting; the word before "_" is the environment.
PEERS = {
    "inc": ("INC mse_v2", "mse_v2"),
    "inc_basic": ("INC basic", "basic"),
    "nncf": ("NNCF, batches of 50", "50"),
    "nncf_single": ("NNCF, one by one", "1"),
    # Not told what a transformer is. The same as above where the model is none.
    "nncf_plain": ("NNCF without preset, batches of 50", "50:plain"),
    "ort": ("ORT quantize_static", ""),
}
STRATEGIES = ("auto", "basic", "conservative", "hawq", "mse", "bayesian", "tpe", "pareto", "random", "exhaustive")


@dataclass(frozen=True)
class Contestant:
    """A tool in one setting.

    Attributes:
        name: As it stands in the table; also its file name.
        script: What the child runs.
        setting: Passed on to it.
        peer: Name of the environment; "" for the project's own.
    """

    name: str
    script: Path
    setting: str = ""
    peer: str = ""

    @property
    def file_name(self) -> str:
        """The name without blanks and commas."""
        return self.name.replace(",", "").replace(" ", "-")


def main() -> int:
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for task in listed(arguments.tasks):
        for contestant in contestants(arguments):
            row = compete(task, contestant, arguments.limit)
            path = arguments.out / f"{task}--{contestant.file_name}.json"
            path.write_text(json.dumps(row, indent=1, sort_keys=True) + "\n")
            print(f"{task:9} {contestant.name:28} {row['status']:12} {str(row.get('reason', ''))[:150]}", flush=True)
    written = table.write(arguments.out)
    print(written.read_text())
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument(
        "--strategies", default=",".join(STRATEGIES), help="by name; one that is not there is a row that says so"
    )
    parser.add_argument(
        "--tracks", default="fallback,any", help="fallback: recipes off; any: the strategy may use them"
    )
    parser.add_argument(
        "--objectives",
        default="latency",
        help="of ours: latency, latency@1 (at batch 1), size; for latency, ops that do not pay stay float",
    )
    parser.add_argument("--peers", default=",".join(PEERS), help=f"some of {','.join(PEERS)}")
    parser.add_argument("--out", type=Path, default=CACHE / "results")
    parser.add_argument("--limit", type=float, default=1800.0, help="CPU seconds per contestant and task")
    arguments = parser.parse_args()
    unknown = [*(set(listed(arguments.peers)) - set(PEERS)), *(set(listed(arguments.tasks)) - set(TASKS))]
    unknown += set(listed(arguments.tracks)) - {"fallback", "any"}
    if unknown:
        parser.error(
            f"unknown: {', '.join(unknown)}; tasks are {', '.join(TASKS)}, peers {', '.join(PEERS)}, tracks fallback and any"
        )
    return arguments


def listed(text: str) -> list[str]:
    """Return the words of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]


def contestants(arguments: argparse.Namespace) -> Iterator[Contestant]:
    """Yield ours, then the peers."""
    for strategy in listed(arguments.strategies):
        for track in listed(arguments.tracks):
            for objective in listed(arguments.objectives):
                name = f"neural_tune {strategy} {track}" + ("" if objective == "latency" else f" {objective}")
                yield Contestant(name, HERE / "ours.py", f"{strategy}:{track}:{objective}")
    for peer in listed(arguments.peers):
        name, setting = PEERS[peer]
        environment = ENVIRONMENTS[peer.partition("_")[0]]
        yield Contestant(name, HERE / "peers" / f"{environment}.py", setting, environment)


def compete(name: str, contestant: Contestant, limit: float) -> dict[str, Any]:
    """Return the row of one contestant on one task; whatever goes wrong is in it."""
    head = {
        "task": name,
        "contestant": contestant.name,
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine(),
    }
    try:
        task = prepare(name)
        python = environment(contestant.peer) if contestant.peer else Path(sys.executable)
    except (MissingTaskError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or ""
        return {**head, "status": "skipped", "reason": f"{error} {output[-800:]}".strip()}
    head["model_sha256"] = hashlib.sha256(task.model.read_bytes()).hexdigest()[:16]
    folder = CACHE / "runs" / name / contestant.file_name
    folder.mkdir(parents=True, exist_ok=True)
    for stale in ("found.json", "judged.json", "progress.json", "outputs.npz"):
        (folder / stale).unlink(missing_ok=True)
    command = [str(python), str(contestant.script), "--task", str(task.folder), "--folder", str(folder)]
    cut, used = supervised([*command, "--setting", contestant.setting], folder / "log.txt", limit)
    found = {"cpu_child_s": round(used, 2), **result(folder, cut)}
    if found.get("artifact"):
        judge = [sys.executable, str(HERE / "judge.py"), "--task", str(task.folder), "--folder", str(folder)]
        if supervised(judge, folder / "judge.txt", 3600.0)[0] or not (folder / "judged.json").exists():
            found["judge_failed"] = (folder / "judge.txt").read_text()[-1500:]
        else:
            found |= json.loads((folder / "judged.json").read_text())
    return {**head, **found}


def supervised(command: list[str], log: Path, limit: float) -> tuple[str, float]:
    """Run a child with its output in `log`; return "" or why it was ended, and its CPU seconds.

    The limit is one of CPU time, so that other work on the machine does not decide who is cut off. SIGTERM comes first: ours then
    returns the best so far.
    """
    # A home of its own: some tools leave files there, and one would send usage statistics without these words.
    variables = {**os.environ, "HOME": str(CACHE), "NNCF_CI": "1", "DO_NOT_TRACK": "1"}
    with log.open("w") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=log.parent, env=variables, start_new_session=True
        )
        used, told = 0.0, 0.0
        while child.poll() is None:
            time.sleep(0.2)
            used = max(used, cpu_seconds(child.pid))
            if used > limit and not told:
                child.send_signal(signal.SIGTERM)
                told = used
            elif told and used > told + 60:
                child.kill()
    if told:
        return f"cut off after {limit:.0f} s of CPU time", used
    return ("" if child.returncode == 0 else f"the process ended with exit status {child.returncode}"), used


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and its ended children; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def result(folder: Path, cut: str) -> dict[str, Any]:
    """Return what the child wrote; of one that did not, how far it had come and the end of its log."""
    path = folder / "found.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return {**found, "cut": cut} if cut else found
    progress = folder / "progress.json"
    counted: dict[str, Any] = json.loads(progress.read_text()) if progress.exists() else {}
    status = "cut" if "cut off" in cut else "failed"
    return {**counted, "status": status, "reason": cut, "log": (folder / "log.txt").read_text()[-3000:]}


def environment(peer: str) -> Path:
    """Return the Python of a peer's own environment, installed on first use from peers/<peer>.txt.

    Raises:
        CalledProcessError: pip failed; its output is in `stderr`.
    """
    requirements = HERE / "peers" / f"{peer}.txt"
    folder = CACHE / "environments" / f"{peer}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:12]}"
    python, ready = folder / "bin" / "python", folder / "installed"
    if not ready.exists():
        print(f"installing {peer} ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "-r", str(requirements)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        ready.write_text(f"{time.time()}\n")
    return python


if __name__ == "__main__":
    sys.exit(main())
