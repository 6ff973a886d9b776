"""A kubectl for two clusters that are files: it keeps what the service's runbook asks for and changes.

CLUSTERS is the folder with one file per context, REAL_KUBECTL the kubectl that renders kustomizations and applies JSON
patches. A Deployment that was changed runs with its flags of before until somebody waits for its rollout.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import yaml

KINDS = {
    "deployments": "Deployment", "deployment": "Deployment", "ingresses": "Ingress", "ingress": "Ingress",
    "statefulsets": "StatefulSet", "daemonsets": "DaemonSet", "cronjobs": "CronJob", "services": "Service", "serviceaccounts": "ServiceAccount", "serviceaccount": "ServiceAccount",
}


def main():
    """Runs one command on the file of its context."""
    if "--local" in sys.argv:
        # That asks no cluster.
        os.execv(os.environ["REAL_KUBECTL"], ["kubectl", *sys.argv[1:]])
    arguments = parse()
    path = pathlib.Path(os.environ["CLUSTERS"]) / f"{arguments.context}.json"
    if not path.exists():
        sys.exit(f'error: context "{arguments.context}" does not exist')
    cluster = json.loads(path.read_text())
    COMMANDS[arguments.verb](cluster, arguments)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(cluster, file)
    os.rename(file.name, path)


def parse():
    """The command line: what is not known here is refused."""
    parser = argparse.ArgumentParser(prog="kubectl", allow_abbrev=False)
    for name in ("context", "namespace", "output", "kustomize", "type", "patch", "patch-file", "replicas", "timeout"):
        parser.add_argument(f"--{name}")
    for name in ("all-namespaces", "overwrite"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("verb", choices=COMMANDS)
    parser.add_argument("words", nargs="*")
    return parser.parse_intermixed_args()


def named(arguments, words):
    """The namespace, kind and name of `KIND NAME` or `KIND/NAME`."""
    kind, name = words[0].split("/") if "/" in words[0] else words
    return arguments.namespace or "default", KINDS[kind], name


def find(cluster, wanted):
    """The object, or kubectl's error."""
    for item in cluster["items"]:
        if (item["metadata"].get("namespace", "default"), item["kind"], item["metadata"]["name"]) == wanted:
            return item
    sys.exit(f'Error from server (NotFound): {wanted[1].lower()} "{wanted[2]}" not found')


def get(cluster, arguments):
    """All objects of some kinds as JSON, where the load balancer of one Ingress is, or how many pods are ready."""
    if arguments.output == "json" and arguments.all_namespaces:
        kinds = {KINDS[word] for word in arguments.words[0].split(",")}
        print(json.dumps({"items": [item for item in cluster["items"] if item["kind"] in kinds]}))
    elif arguments.output == "jsonpath={.status.loadBalancer.ingress[0].hostname}":
        item = find(cluster, named(arguments, arguments.words))
        print(item["status"]["loadBalancer"]["ingress"][0]["hostname"], end="")
    elif arguments.output == "jsonpath={.status.readyReplicas}":
        item = find(cluster, named(arguments, arguments.words))
        print(item.get("status", {}).get("readyReplicas", ""), end="")
    else:
        sys.exit(f"this kubectl knows no such question: {arguments}")


def apply(cluster, arguments):
    """What kustomize renders takes the place of what was there; an Ingress has its load balancer at once, a Deployment
    as many pods as its autoscaler wants at least."""
    rendered = subprocess.run([os.environ["REAL_KUBECTL"], "kustomize", arguments.kustomize], check=True,
                              capture_output=True, text=True).stdout
    items = list(filter(None, yaml.safe_load_all(rendered)))
    pods = {item["spec"]["scaleTargetRef"]["name"]: item["spec"]["minReplicas"] for item in items
            if item["kind"] == "HorizontalPodAutoscaler"}
    for item in items:
        metadata = item["metadata"]
        if item["kind"] == "Deployment":
            item["status"] = {"readyReplicas": pods[metadata["name"]]}
        if item["kind"] == "Ingress":
            item["status"] = {"loadBalancer": {"ingress": [{"hostname": cluster["balancer"]}]}}
        key = (item["kind"], metadata.get("namespace"), metadata["name"])
        cluster["items"] = [other for other in cluster["items"] if key != (
            other["kind"], other["metadata"].get("namespace"), other["metadata"]["name"])] + [item]
        print(f"{item['kind'].lower()}/{metadata['name']} configured")


def patch(cluster, arguments):
    """A JSON patch, applied by a real kubectl."""
    item = find(cluster, named(arguments, arguments.words))
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump({"apiVersion": "apps/v1", **item}, file)
        file.flush()
        how = ["--patch", arguments.patch] if arguments.patch else ["--patch-file", arguments.patch_file]
        done = subprocess.run(
            [os.environ["REAL_KUBECTL"], "patch", "--local", "--filename", file.name, "--type", arguments.type, *how,
             "--output", "json"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    item["spec"] = json.loads(done.stdout)["spec"]
    item["metadata"]["generation"] += 1
    print(f"deployment.apps/{item['metadata']['name']} patched")


def rollout(cluster, arguments):
    """`rollout status` waits until the pods have the flags of the Deployment, which they have then."""
    verb, *words = arguments.words
    item = find(cluster, named(arguments, words))
    name = item["metadata"]["name"]
    if verb == "restart":
        item["metadata"]["generation"] += 1
        print(f"deployment.apps/{name} restarted")
    elif verb == "status":
        count = item["spec"].get("replicas", 1)
        item["status"] = {"observedGeneration": item["metadata"]["generation"], "replicas": count,
                          "updatedReplicas": count, "readyReplicas": count}
        container = item["spec"]["template"]["spec"]["containers"][0]
        cluster["running"] = container["args"] if count else None
        print(f'deployment "{name}" successfully rolled out')
    else:
        sys.exit(f"this kubectl knows no rollout {verb}")


def scale(cluster, arguments):
    """Another number of pods, which is reached once somebody waits for it."""
    item = find(cluster, named(arguments, arguments.words))
    item["spec"]["replicas"] = int(arguments.replicas)
    item["metadata"]["generation"] += 1
    print(f"deployment.apps/{item['metadata']['name']} scaled")


def annotate(cluster, arguments):
    """One annotation."""
    *words, annotation = arguments.words
    item = find(cluster, named(arguments, words))
    key, _, value = annotation.partition("=")
    item["metadata"].setdefault("annotations", {})[key] = value
    print(f"{words[0]}/{item['metadata']['name']} annotated")


def delete(cluster, arguments):
    """One object."""
    item = find(cluster, named(arguments, arguments.words))
    cluster["items"].remove(item)
    print(f'{item["kind"].lower()} "{item["metadata"]["name"]}" deleted')


COMMANDS = {"get": get, "apply": apply, "patch": patch, "rollout": rollout, "scale": scale, "annotate": annotate,
            "delete": delete}

if __name__ == "__main__":
    main()
