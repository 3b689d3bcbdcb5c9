"""What must hold of every manifest, whatever the values."""

import pathlib
import re

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto/weir/v1"

PROGRAMS = {"coordinator", "worker", "migrate", "weir"}


def pods_of(manifests):
    """(what it is, labels, spec) of everything that becomes a pod."""
    for manifest in manifests:
        what = f"{manifest['kind']} {manifest['metadata']['name']}"
        if manifest["kind"] == "Pod":
            yield what, manifest["metadata"]["labels"], manifest["spec"]
        elif "template" in manifest.get("spec", {}):
            template = manifest["spec"]["template"]
            yield what, template["metadata"]["labels"], template["spec"]


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def check_pod(spec):
    """Faults of a pod's own settings."""
    security = spec.get("securityContext", {})
    if spec.get("automountServiceAccountToken") is not False:
        yield "a token of the Kubernetes API is mounted"
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "it may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "it has no seccomp profile"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"it has {key}"
    for volume in spec.get("volumes") or []:
        if "hostPath" in volume:
            yield f"the volume {volume['name']} is of the node"
    mounted = {mount["name"] for container in spec["containers"] for mount in container.get("volumeMounts") or []}
    for name in sorted(mounted ^ {volume["name"] for volume in spec.get("volumes") or []}):
        yield f"the volume {name} is not there, or nowhere mounted"


def check_container(container):
    """Faults of a container's settings."""
    security = container.get("securityContext", {})
    if container["name"] not in PROGRAMS:
        yield "it is none of Weir's programs"
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "it may gain privileges"
    if security.get("readOnlyRootFilesystem") is not True:
        yield "its file system can be written"
    if security.get("capabilities", {}).get("drop") != ["ALL"] or security["capabilities"].get("add"):
        yield "it has capabilities"
    if re.search(r":latest$|/[^:@]+$", "/" + container["image"]):
        yield f"the image {container['image']} has no fixed version"
    resources = container.get("resources", {})
    if not {"cpu", "memory"} <= resources.get("requests", {}).keys() or "memory" not in resources.get("limits", {}):
        yield "it requests or limits no processor or memory"
    names = [env["name"] for env in container.get("env", [])]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{name} is set twice"
    for env in container.get("env", []):
        if re.search(r"DATABASE_URL|PASSWORD|(?<!_)SECRET|API_KEY$|(?<!INSECURE_)TOKEN$", env["name"]) and "value" in env:
            yield f"{env['name']} is in the manifest instead of a Secret"
    said = {env["name"]: env.get("value", "") for env in container.get("env", [])}
    plain = "WEIR_TOKEN_FILE" in said and said.get("WEIR_COORDINATOR", "").startswith("http://")
    if plain != (said.get("WEIR_INSECURE_TOKEN") == "true"):
        yield "it sends a token without TLS, and is not told so" if plain else "WEIR_INSECURE_TOKEN says more than is so"


def check_long_lived(spec):
    """Faults of a Deployment's pod."""
    container = spec["containers"][0]
    for probe in ("livenessProbe", "readinessProbe"):
        if probe not in container:
            yield f"it has no {probe}"
    env = {env["name"]: env.get("value") for env in container["env"]}
    drain = seconds(env["WEIR_DRAIN_TIMEOUT"]) + seconds(env.get("WEIR_DRAIN_DELAY", "0s"))
    if spec["terminationGracePeriodSeconds"] <= drain:
        yield "it is killed before it has drained"
    scheme = "HTTPS" if "WEIR_TLS_CERT" in env else "HTTP"
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container.get(name, {})
        if "grpc" in probe and scheme == "HTTPS":
            yield f"its {name} speaks gRPC without TLS to what has TLS"
        if "httpGet" in probe and probe["httpGet"].get("scheme", "HTTP") != scheme:
            yield f"its {name} does not speak {scheme}"
    if not spec.get("topologySpreadConstraints"):
        yield "its replicas may all be on one node"


def services():
    """Every service of the contract, by its full name."""
    return {f"weir.v1.{name}" for file in PROTO.glob("*.proto") for name in re.findall(r"^service (\w+)", file.read_text(), re.M)}


def leads(rule, path):
    """Whether a path of an Ingress leads a request of this path on.
    https://kubernetes.io/docs/concepts/services-networking/ingress/#path-types"""
    wanted = rule["path"].rstrip("/")
    return path == rule["path"] or rule["pathType"] == "Prefix" and (path + "/").startswith(wanted + "/")


def check_published(manifest):
    """Faults of what an Ingress or a GRPCRoute leads on from outside."""
    calls = {name: f"/{name}/Call" for name in services() | {"grpc.health.v1.Health"}}
    inside = ["/metrics", "/livez", "/readyz", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
              "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/externalscaler.ExternalScaler/IsActive",
              "/weir.v1", "/anything"]
    if manifest["kind"] == "GRPCRoute":
        matches = [match["method"] for rule in manifest["spec"]["rules"] for match in rule.get("matches") or [{"method": {}}]]
        published = {match.get("service", "every service") for match in matches}
        for name in sorted(published ^ calls.keys()):
            yield f"it leads {name} on, or should and does not"
        return
    pages = manifest["metadata"]["name"].endswith("-dashboard")
    wanted = ["/", "/dashboard/page.js", "/dashboard/vendor/preact.js", "/api/JobService/WatchStatus"] if pages else calls.values()
    for rule in manifest["spec"]["rules"]:
        paths = rule["http"]["paths"]
        for path in inside:
            if any(leads(one, path) for one in paths):
                yield f"{rule['host']}: it leads {path} on, which is for the cluster alone"
        for path in wanted:
            if not any(leads(one, path) for one in paths):
                yield f"{rule['host']}: it does not lead {path} on"


def check_hosts(manifests):
    """Faults of the names that a coordinator goes by which asks nobody who they are."""
    named = lambda kind: {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}
    for what, _, spec in pods_of(manifests):
        env = {env["name"]: env.get("value") for env in spec["containers"][0].get("env", [])}
        if "WEIR_LISTEN" not in env or not what.startswith("Deployment"):
            continue
        hosts = set(env.get("WEIR_ALLOWED_HOSTS", "").split(",")) - {""}
        if not hosts and ("WEIR_TOKENS_FILE" in env or "WEIR_TLS_CLIENT_CA" in env):
            continue
        wanted = {rule["host"] for one in named("Ingress").values() for rule in one["spec"]["rules"]}
        wanted |= {host for one in named("GRPCRoute").values() for host in one["spec"].get("hostnames", [])}
        for name, one in named("Service").items():
            inside = f"{name}.{one['metadata']['namespace']}"
            wanted |= {name, inside, f"{inside}.svc", f"{inside}.svc.cluster.local"}
        # What others in the cluster are told to call it by.
        text = re.findall(r"(?:https?://|scalerAddress': ')([\w.-]*-coordinator[\w.-]*):", str(manifests))
        for host in sorted((wanted | set(text)) - hosts):
            yield f"{what}: it does not go by {host}"


def selects(selector, labels):
    return selector["matchLabels"].items() <= labels.items()


def check(manifests):
    """All faults, in words."""
    faults, pods = [], list(pods_of(manifests))
    of_kind = lambda kind: [one for one in manifests if one["kind"] == kind]
    for what, labels, spec in pods:
        found = list(check_pod(spec))
        for container in spec["containers"]:
            found += check_container(container)
        if what.startswith("Deployment"):
            found += check_long_lived(spec)
        policies = [one["spec"] for one in of_kind("NetworkPolicy") if selects(one["spec"]["podSelector"], labels)]
        if of_kind("NetworkPolicy") and {kind for one in policies for kind in one["policyTypes"]} != {"Ingress", "Egress"}:
            found.append("no network policy limits it both ways")
        if spec["serviceAccountName"] not in {one["metadata"]["name"] for one in of_kind("ServiceAccount")}:
            found.append("its ServiceAccount is not there")
        faults += [f"{what}: {fault}" for fault in found]
    for one in of_kind("Ingress") + of_kind("GRPCRoute"):
        faults += [f"{one['kind']} {one['metadata']['name']}: {fault}" for fault in check_published(one)]
    faults += check_hosts(manifests)
    labelled = [labels for _, labels, _ in pods]
    for one in of_kind("Service"):
        if not any(one["spec"]["selector"].items() <= labels.items() for labels in labelled):
            faults.append(f"Service {one['metadata']['name']}: it leads to no pod")
    for one in of_kind("PodDisruptionBudget"):
        if not any(selects(one["spec"]["selector"], labels) for labels in labelled):
            faults.append(f"PodDisruptionBudget {one['metadata']['name']}: it is about no pod")
    deployments = {one["metadata"]["name"]: one for one in of_kind("Deployment")}
    for one in of_kind("ScaledObject") + of_kind("HorizontalPodAutoscaler"):
        target = deployments.get(one["spec"]["scaleTargetRef"]["name"])
        if not target or "replicas" in target["spec"]:
            faults.append(f"{one['kind']} {one['metadata']['name']}: it scales nothing, or what has a fixed number")
    faults += [f"Secret {one['metadata']['name']}: secrets are for others to make" for one in of_kind("Secret")]
    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    faults += [f"{kind} {name} is there twice" for kind, name in sorted(set(names)) if names.count((kind, name)) > 1]
    return faults
