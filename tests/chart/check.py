"""Checks the Helm chart: lint, every file of ci/ rendered and held against the
schemas of Kubernetes, against policy.py and against what was rendered before;
ci/refused/ is refused; the schema and the README are those of the programs and
of values.yaml; what an earlier version installed can be upgraded."""

import json
import pathlib
import re
import subprocess
import sys

import kubernetes_validate
import yaml

import policy
import settings

CHART = settings.ROOT / "helm/weir"
SCHEMA = CHART / "values.schema.json"
GOLDEN = CHART / "ci/golden"
# The oldest that Chart.yaml promises, and the newest that there are schemas of.
VERSIONS = ["1.27", "1.31", "1.34", "1.37"]
# The schemas of these are with what defines them; policy.py and the tests know
# what of them matters.
FOREIGN = re.compile(r"^(keda\.sh|monitoring\.coreos\.com|gateway\.networking\.k8s\.io)/")
FAULTS = []


def helm(*args):
    return subprocess.run(["helm", *map(str, args)], capture_output=True, text=True)


def render(values, version=VERSIONS[-1]):
    return helm("template", "weir", CHART, "--namespace", "weir", "--kube-version", version, "--values", values)


def manifests_of(text):
    return [one for one in yaml.safe_load_all(text) if one]


def version():
    return yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]


def check_lint(cases):
    for case in cases:
        done = helm("lint", "--strict", CHART, "--kube-version", VERSIONS[-1], "--values", case)
        if done.returncode:
            FAULTS.append(f"{case.name}: helm lint: {done.stdout}{done.stderr}")


def check_manifests(case):
    """Renders a case for every version; returns what it is for the newest."""
    for version in VERSIONS:
        done = render(case, version)
        if done.returncode:
            FAULTS.append(f"{case.name}: {done.stderr.strip()}")
            return []
        manifests = manifests_of(done.stdout)
        for manifest in manifests:
            if FOREIGN.match(manifest["apiVersion"]):
                continue
            try:
                kubernetes_validate.validate(manifest, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                at = ".".join(map(str, error.path))
                name = f"{manifest['kind']} {manifest['metadata']['name']}"
                FAULTS.append(f"{case.name}: Kubernetes {version}: {name}: {at}: {error.message}")
    FAULTS.extend(f"{case.name}: {fault}" for fault in policy.check(manifests))
    return manifests


def check_golden(case, write):
    """What is rendered is what was rendered, and shows in a change's diff."""
    golden = GOLDEN / version() / case.name
    text = render(case).stdout
    # The dashboard is a file of its own; what it says is not the chart's.
    text = re.sub(r"(?m)^(  weir\.json: \|-)\n(?:    .*\n)+", r"\1\n    {}\n", text)
    if write:
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(text)
    if not golden.exists() or golden.read_text() != text:
        FAULTS.append(f"{case.name}: it renders otherwise than {golden.relative_to(settings.ROOT)} (make chart-write)")


def immutable(manifest):
    """What of a manifest no upgrade can change."""
    spec = manifest.get("spec", {})
    return {
        "Deployment": lambda: spec["selector"],
        "Service": lambda: spec.get("clusterIP"),
    }.get(manifest["kind"], lambda: None)()


def check_upgrade(case, manifests):
    """What an earlier version installed is there still, and can be changed into this."""
    now = {(one["kind"], one["metadata"]["name"]): one for one in manifests}
    for golden in sorted(GOLDEN.glob(f"*/{case.name}")):
        was = golden.parent.name
        for one in manifests_of(golden.read_text()):
            key = (one["kind"], one["metadata"]["name"])
            if key[0] in ("Deployment", "Service") and key not in now:
                FAULTS.append(f"{case.name}: {' '.join(key)} of {was} is gone: calls and work of it would be cut off")
            elif key in now and immutable(now[key]) != immutable(one):
                FAULTS.append(f"{case.name}: {' '.join(key)} cannot be changed from what {was} installs")


def check_refused():
    """Each file of ci/refused says in its first line what its refusal must say."""
    for case in sorted((CHART / "ci/refused").glob("*.yaml")):
        first = case.read_text().splitlines()[0]
        done = render(case)
        words = first.removeprefix("# ").split(" … ")
        if done.returncode == 0:
            FAULTS.append(f"refused/{case.name}: it is accepted")
        elif not all(word in done.stderr for word in words):
            FAULTS.append(f"refused/{case.name}: {words} is not in: {done.stderr.strip()}")


def check_schema(write):
    schema = json.loads(SCHEMA.read_text())
    made = settings.definitions()
    if write:
        schema["definitions"].update(made)
        SCHEMA.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
    for name, definition in made.items():
        if schema["definitions"][name] != definition:
            FAULTS.append(f"values.schema.json: {name} is not what the programs' settings are (make chart-write)")


def check_readme(write):
    flags = [] if write else ["--dry-run"]
    done = subprocess.run(
        ["helm-docs", "--chart-search-root", str(CHART), "--log-level", "error", "--sort-values-order", "file", *flags], capture_output=True, text=True
    )
    if done.returncode:
        FAULTS.append(f"helm-docs: {done.stderr}")
    elif not write and done.stdout.strip() != (CHART / "README.md").read_text().strip():
        FAULTS.append("helm/weir/README.md is not what values.yaml says (make chart-write)")


def main(write):
    cases = sorted((CHART / "ci").glob("*.yaml"))
    check_schema(write)
    check_readme(write)
    check_lint(cases)
    everything = []
    for case in cases:
        manifests = check_manifests(case)
        check_golden(case, write)
        check_upgrade(case, manifests)
        everything += manifests
    FAULTS.extend(settings.unreachable(everything))
    check_refused()
    refused = len(list((CHART / "ci/refused").glob("*.yaml")))
    print("\n".join(FAULTS) or (
        f"The chart holds: {len(cases)} sets of values, {len(everything)} manifests, Kubernetes {', '.join(VERSIONS)}; "
        f"{refused} sets refused."
    ))
    return 1 if FAULTS else 0


sys.exit(main("--write" in sys.argv))
