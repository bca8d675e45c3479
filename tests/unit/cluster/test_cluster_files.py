"""The cluster files are ones that Ray, Kubernetes and bash accept, and they agree with one another."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from ray._common.utils import import_attr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from bs_cluster.serving.settings import Settings

ROOT = Path(__file__).parents[3]
LAUNCHERS = ["ray_cluster.yaml", "cluster/gcp.yaml"]
MANIFESTS = sorted((ROOT / "cluster/kubernetes").glob("*.yaml"))
JOB = "python jobs/outer_loop.py --config jobs/configs/gemma3_12b.yaml training.num_workers=8"
RAY = "2.60.0"
WORKERS = 8


def load(path):
    return list(yaml.safe_load_all((ROOT / path).read_text()))


def manifest(kind):
    found = [doc for path in MANIFESTS for doc in load(path) if doc["kind"] == kind]
    assert len(found) == 1
    return found[0]


def pod_specs():
    """(name, pod spec) of everything that runs in Kubernetes."""
    cluster = manifest("RayCluster")["spec"]
    yield "head", cluster["headGroupSpec"]["template"]["spec"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]
    service = manifest("RayService")["spec"]["rayClusterConfig"]
    yield "serving head", service["headGroupSpec"]["template"]["spec"]
    for group in service["workerGroupSpecs"]:
        yield f"serving {group['groupName']}", group["template"]["spec"]
    yield "mlflow", manifest("Deployment")["spec"]["template"]["spec"]
    yield "submitter", manifest("RayJob")["spec"]["submitterPodTemplate"]["spec"]


@pytest.mark.parametrize("path", LAUNCHERS)
def test_ray_accepts_the_launcher_file(path):
    (config,) = load(path)
    prepared = prepare_config(config)
    validate_config(prepared)
    workers = {
        name: node for name, node in prepared["available_node_types"].items() if name != config["head_node_type"]
    }
    assert all(node["min_workers"] == 0 for node in workers.values())
    gpus = sum(node["resources"]["GPU"] * node["max_workers"] for node in workers.values())
    assert gpus >= WORKERS


@pytest.mark.parametrize("path", LAUNCHERS)
def test_the_launcher_pins_ray_and_names_local_files_only_by_path(path):
    (config,) = load(path)
    assert any(f'ray[default,train,data,serve]=={RAY}"' in command for command in config["setup_commands"])
    assert not any(Path(local).is_absolute() for local in config["file_mounts"].values())
    assert any("mlflow server" in command for command in config["head_start_ray_commands"])


@pytest.mark.parametrize("path", LAUNCHERS)
def test_launcher_commands_are_bash(path):
    (config,) = load(path)
    for name in ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[name]:
            subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize(("path", "platform"), [("ray_cluster.yaml", "aws"), ("cluster/gcp.yaml", "gcp")])
def test_worker_nodes_watch_for_the_notice_that_they_are_taken(path, platform):
    (config,) = load(path)
    assert any(f"python -m bs_cluster.spot {platform} " in command for command in config["worker_start_ray_commands"])
    assert not any("bs_cluster.spot" in command for command in config["head_start_ray_commands"])


def test_worker_pods_drain_before_they_go():
    for name, pod in pod_specs():
        (container,) = pod["containers"]
        hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        if name == "gpu":
            assert hook[:4] == ["python", "-m", "bs_cluster.spot", "now"]
            (seconds,) = (float(word.removeprefix("--seconds=")) for word in hook if word.startswith("--seconds="))
            assert seconds < pod["terminationGracePeriodSeconds"]
        else:
            assert hook is None


def test_the_environment_file_a_node_writes_points_at_the_head(tmp_path):
    """The launcher's printf line, run for real: what it writes is sourced by every node before Ray starts."""
    (config,) = load("ray_cluster.yaml")
    (write,) = [command for command in config["setup_commands"] if command.startswith("printf")]
    script = f"{write} && RAY_HEAD_IP=10.0.0.7 && . ~/bs_env.sh && env"
    out = subprocess.run(
        ["bash", "-c", script], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, check=True, capture_output=True
    )
    settings = dict(line.split("=", 1) for line in out.stdout.decode().splitlines() if "=" in line)
    assert settings["MLFLOW_TRACKING_URI"] == "http://10.0.0.7:5000"
    assert settings["RAY_USAGE_STATS_ENABLED"] == "0"
    assert settings["PATH"].startswith(f"{tmp_path}/venv/bin:")


def test_the_local_cluster_can_scale_both_ways():
    (config,) = load("cluster/local_autoscale.yaml")
    validate_config(config)
    assert config["provider"]["type"] == "fake_multinode"
    assert config["provider"]["use_node_id_as_ip"]
    assert config["idle_timeout_minutes"] < 1


def test_the_ray_cluster_autoscales_whole_gpu_nodes():
    cluster = manifest("RayCluster")["spec"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["rayVersion"] == RAY
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits, requests = container["resources"]["limits"], container["resources"]["requests"]
    assert limits == requests
    assert group["minReplicas"] == group["replicas"] == 0
    assert str(limits["nvidia.com/gpu"]) == group["rayStartParams"]["num-gpus"]
    assert limits["nvidia.com/gpu"] * group["maxReplicas"] >= WORKERS


def test_pods_mount_only_volumes_they_declare_and_share_one_image():
    images = set()
    for name, spec in pod_specs():
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        for container in spec["containers"]:
            images.add(container["image"])
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            assert mounted <= volumes, name
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
    assert len(images) == 1
    (image,) = images
    assert image.endswith(f"-ray{RAY}")
    assert image in (ROOT / "cluster/docker/Dockerfile").read_text()


def test_ray_pods_share_memory_and_one_environment():
    ray_pods = [spec for name, spec in pod_specs() if name in ("head", "gpu")]
    environments = [spec["containers"][0]["env"] for spec in ray_pods]
    assert environments[0] == environments[1]
    assert all("/dev/shm" in {m["mountPath"] for m in spec["containers"][0]["volumeMounts"]} for spec in ray_pods)
    values = {entry["name"]: entry.get("value") for entry in environments[0]}
    service = manifest("Service")
    assert (
        values["MLFLOW_TRACKING_URI"] == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    )
    assert "DS_ACCELERATOR" not in values


def test_the_kubernetes_job_runs_on_the_cluster_and_mlflow_is_selected():
    job, deployment = manifest("RayJob"), manifest("Deployment")
    assert job["spec"]["clusterSelector"]["ray.io/cluster"] == manifest("RayCluster")["metadata"]["name"]
    assert job["spec"]["entrypoint"].startswith(JOB)
    assert deployment["spec"]["selector"]["matchLabels"] == manifest("Service")["spec"]["selector"]
    assert deployment["spec"]["replicas"] == 1
    claims = {v["persistentVolumeClaim"]["claimName"] for v in deployment["spec"]["template"]["spec"]["volumes"]}
    assert claims == {manifest("PersistentVolumeClaim")["metadata"]["name"]}
    accounts = {spec.get("serviceAccountName") for name, spec in pod_specs() if name != "submitter"}
    assert accounts == {manifest("ServiceAccount")["metadata"]["name"]}


def test_the_serve_config_is_one_that_ray_and_the_campaign_accept(monkeypatch):
    (config,) = load("cluster/serve.yaml")
    read = ServeDeploySchema.model_validate(config)
    assert manifest("RayService")["spec"]["serveConfigV2"]
    assert yaml.safe_load(manifest("RayService")["spec"]["serveConfigV2"])["applications"] == config["applications"]
    (served,) = read.applications
    monkeypatch.setenv("BS_CLUSTER_API_KEY", "sk-any")
    built = import_attr(served.import_path)(served.args)
    (engine,) = served.deployments
    assert built._bound_deployment.name == engine.name
    assert served.args["campaign"] == load("jobs/configs/gemma3_12b.yaml")[0]["campaign"]
    assert engine.max_ongoing_requests > served.args["max_running"] + Settings().max_waiting


def test_replicas_are_served_from_pods_that_have_the_key_and_a_gpu_each():
    spec = manifest("RayService")["spec"]
    cluster = spec["rayClusterConfig"]
    assert cluster["rayVersion"] == RAY
    assert cluster["authOptions"]["mode"] == "token"
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    (engine,) = application["deployments"]
    (group,) = cluster["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    assert engine["ray_actor_options"]["num_gpus"] == container["resources"]["limits"]["nvidia.com/gpu"]
    assert engine["autoscaling_config"]["max_replicas"] <= group["maxReplicas"]
    assert engine["graceful_shutdown_timeout_s"] < group["template"]["spec"]["terminationGracePeriodSeconds"]
    for pod in (cluster["headGroupSpec"]["template"]["spec"], group["template"]["spec"]):
        (container,) = pod["containers"]
        assert "BS_CLUSTER_API_KEY" in {entry["name"] for entry in container["env"]}
        assert {8000, 8080} <= {port["containerPort"] for port in container["ports"]}


def test_the_image_pins_ray_and_a_cuda_with_a_compiler():
    dockerfile = (ROOT / "cluster/docker/Dockerfile").read_text()
    assert f"ray[default,train,data,serve]=={RAY}" in dockerfile
    assert re.search(r"nvidia/cuda:\S+-devel-", dockerfile)


@pytest.mark.parametrize(
    "path", [*LAUNCHERS, "cluster/kubernetes/ray-job.yaml", "cluster/slurm/outer_loop.sbatch", "cluster/README.md"]
)
def test_the_flagship_command_is_the_same_everywhere(path):
    assert JOB in " ".join((ROOT / path).read_text().replace("#", " ").replace("\\", " ").split())


@pytest.mark.parametrize("path", sorted((ROOT / "cluster").rglob("*.sbatch")), ids=lambda path: path.name)
def test_scripts_are_bash_and_stop_at_the_first_error(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert "set -euo pipefail" in text
    assert "pkill" not in text
    assert not re.search(r"^\s*ray stop", text, flags=re.MULTILINE)


def written() -> dict[Path, str]:
    """What anything of ours is started by; not what Python left of it."""
    files = [path for path in (ROOT / "cluster").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path: path.read_text() for path in (ROOT / "ray_cluster.yaml", ROOT / "Makefile", *files)}


def test_no_file_switches_the_dashboard_off():
    switched = re.compile(r"include[-_]dashboard[=: ]*[Ff]alse")
    assert not [path for path, words in written().items() if switched.search(words)]


def test_no_file_switches_authentication_off():
    text = written()
    assert not [path for path, words in text.items() if re.search(r"AUTH_MODE\W+(value\W+)?disabled", words)]
    for path in ("ray_cluster.yaml", "cluster/gcp.yaml", "cluster/slurm/outer_loop.sbatch", "cluster/local.py"):
        assert re.search(r"RAY_AUTH_MODE\W+token", text[ROOT / path]), path
    for path in LAUNCHERS:  # every node has the token before Ray starts
        (config,) = load(path)
        assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


def test_kubernetes_pods_share_the_operator_s_token():
    cluster = manifest("RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    (submitter,) = manifest("RayJob")["spec"]["submitterPodTemplate"]["spec"]["containers"]
    given = {entry["name"]: entry for entry in submitter["env"]}
    assert given["RAY_AUTH_MODE"]["value"] == "token"
    secret = given["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert secret == {"name": cluster["metadata"]["name"], "key": "auth_token"}
