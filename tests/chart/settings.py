"""The settings of the programs, read from their sources, as the chart has them."""

import importlib.machinery
import importlib.util
import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]

COORDINATOR, WORKER = "weir-coordinator", "weir-worker"

# Settings that have values of their own in the chart, or none because every
# worker must have another.
OWN = {
    COORDINATOR: {
        "database-url", "listen", "migrate", "models", "models-file", "drain-delay", "drain-timeout", "otlp-endpoint", "trace-ratio",
        "tls-cert", "tls-key", "tls-client-ca", "tokens-file", "insecure", "allowed-hosts",
    },
    WORKER: {
        "coordinator", "model", "models-file", "drain-timeout", "http-listen", "worker-id", "otlp-endpoint",
        "trace-ratio", "embedder-api-key-file", "ca-file", "client-cert", "client-key", "token-file",
        "insecure-token",
    },
}
NOT_IN_CHART = {(WORKER, "worker-id")}

DURATION = {"type": "string", "pattern": r"^[0-9]+ ?[a-zµ]+( ?[0-9]+ ?[a-zµ]+)*$"}
ENUMS = {"LogFormat": ["human", "json"], "EmbedderKind": ["ollama", "openai", "tei", "local"]}

# What a table of a models file may say: embedder/src/profile/partial.rs.
PROFILE = ROOT / "embedder/src/profile/partial.rs"
MOST = {"dimension": 16000, "batch-size": 10000, "concurrency": 256}
OF_PROFILE = {
    "Encoding": {"enum": ["auto", "base64", "float", "omit"]},
    "BTreeMap<String, HeaderSource>": {
        "type": "object",
        "additionalProperties": {
            "oneOf": [
                {"type": "string", "minLength": 1},
                {
                    "type": "object", "additionalProperties": False, "required": ["file"],
                    "properties": {"file": {"type": "string", "minLength": 1}},
                },
            ],
        },
    },
    "Fields": {"type": "object"},
    "PartialRole": {"$ref": "#/definitions/modelRole"},
}


def documents():
    """`.ci/docs`, which reads the programs' settings already."""
    path = str(ROOT / ".ci/docs")
    loader = importlib.machinery.SourceFileLoader("documents", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("documents", loader))
    loader.exec_module(module)
    return module


def sources(docs, program):
    for source in docs.PROGRAMS[program]:
        at = ROOT / source
        for path in [at] if at.is_file() else sorted(at.rglob("*.rs")):
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


def schema_of(kind, body):
    """The JSON schema of a setting of this Rust type."""
    kind = re.sub(r"^Option<(.*)>$", r"\1", kind)
    if kind == "Duration":
        return DURATION
    if kind == "bool":
        return {"type": "boolean"}
    if kind in ENUMS:
        return {"enum": ENUMS[kind]}
    if kind == "f64":
        return {"type": "number"}
    if re.fullmatch(r"(NonZero)?[iuU](size|\d+)", kind):
        least = re.search(r"range\((\d[\d_]*)\.\.", body)
        most = re.search(r"\.\.=(\d[\d_]*)\)", body)
        schema = {"type": "integer", "minimum": int(least[1].replace("_", "")) if least else int("NonZero" in kind)}
        if most:
            schema["maximum"] = int(most[1].replace("_", ""))
        return schema
    return {"type": "string", "minLength": 1}


def settings(docs, program):
    """Every setting with a variable: flag → (variable, schema, source)."""
    found = {}
    for source, text in sources(docs, program):
        for match in re.finditer(r"#\[arg\(", text):
            body, end = docs.attribute_at(text, match.end())
            env = re.search(r'\benv = "([^"]+)"', body)
            if not env:
                continue
            field = re.match(r"\]\s*(?:#\[.*\]\s*)*(?:pub(?:\(.*?\))? )?(\w+):\s*(.+),", text[end:])
            found[field[1].replace("_", "-")] = (env[1], schema_of(field[2], body), source)
    return found


def definitions():
    """The parts of the schema that are made from the programs' settings."""
    docs = documents()

    def config(chosen):
        properties = {flag: schema for flag, (_, schema, _) in sorted(chosen.items())}
        return {"type": "object", "additionalProperties": False, "properties": properties}

    coordinator, worker = settings(docs, COORDINATOR), settings(docs, WORKER)
    return {
        "coordinatorConfig": config({k: v for k, v in coordinator.items() if k not in OWN[COORDINATOR]}),
        "workerConfig": config({k: v for k, v in worker.items() if k not in OWN[WORKER]}),
        "modelProfile": profile("Partial"),
        "modelRole": profile("PartialRole"),
    }


def profile(name):
    """The schema of what a struct of the models file takes."""
    fields = re.search(rf"struct {name} \{{(.*?)^\}}", PROFILE.read_text(encoding="utf-8"), re.M | re.S)[1]
    properties = {}
    for field, kind in re.findall(r"^ +pub\(crate\) (\w+): (.+),$", fields, re.M):
        key, kind = field.replace("_", "-"), re.sub(r"^Option<(.*)>$", r"\1", kind)
        schema = dict(OF_PROFILE.get(kind) or schema_of(kind, "range(1.."))
        if key == "prompt":
            # An empty one takes the place of the built-in.
            schema = {"type": "string", "maxLength": 4096}
        if key in MOST:
            schema["maximum"] = MOST[key]
        properties[key] = schema
    return {"type": "object", "additionalProperties": False, "properties": dict(sorted(properties.items()))}


def unreachable(manifests):
    """Faults of settings that no values reach, and of variables that nobody reads."""
    docs, faults, seen = documents(), [], {COORDINATOR: set(), WORKER: set()}
    for program, variables in seen.items():
        for manifest in manifests:
            spec = manifest.get("spec", {}).get("template", {}).get("spec", {})
            for container in spec.get("containers", []):
                if manifest["kind"] == "Deployment" and f"/{program}" in f"/{container['image']}":
                    variables |= {env["name"] for env in container["env"] if env["name"].startswith("WEIR_")}
        known = settings(docs, program)
        for flag in sorted(OWN[program] & known.keys()):
            if known[flag][0] not in variables and (program, flag) not in NOT_IN_CHART:
                faults.append(f"{program}: no file of ci/ renders {known[flag][0]}, which has a value of its own")
        own = {"WEIR_" + flag.replace("-", "_").upper() for flag in OWN[program]}
        for name in sorted(variables - own - {env for env, _, _ in known.values()}):
            faults.append(f"{program}: it does not read {name}, which the chart sets")
    return faults
