"""What a configuration file may say, and what the node refuses to start with (S05)."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra serve")

from seg.infer.errors import SegError
from seg.infer.serve.config import Config, parse_config, read_config
from seg.infer.serve.objects import Facts
from seg.infer.serve.queue import Queue
from seg.infer.serve.worker import fitting_rule

PEER = {"aet": "PACS", "host": "127.0.0.1", "port": 104}
TLS = {"certificate": "c", "key": "k", "authority": "a"}


def parsed(**changes: Any) -> Config:
    return parse_config({"state": "x", "peer": [PEER], "rule": [{"model": "m"}], **changes})


def test_file_as_in_readme(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'state = "x"\naet = "SEGNODE"\nsend_to = "PACS"\nkeep_hours = 1\n'
        '[[peer]]\naet = "PACS"\nhost = "127.0.0.1"\nport = 104\n'
        '[[peer]]\naet = "CT1"\nhost = "127.0.0.2"\naddresses = ["127.0.0.0/30"]\n'
        '[[rule]]\nmodel = "hippocampus"\nmodality = "MR"\ndescription = "*hcrop*"\n'
        "[limits]\nassociations = 3\n[waits]\nquiet = 90\n"
    )
    config = read_config(str(path))
    assert (config.aet, config.keep_hours, config.limits.associations, config.waits.quiet) == ("SEGNODE", 1.0, 3, 90.0)
    assert config.receiver("CT1") == config.peer("PACS")
    assert config.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prot": 104}, "prot"),
        ({"port": "104"}, "no int"),
        ({"limits": {"asociations": 3}}, "asociations"),
        ({"limits": {"associations": 0}}, "above 0"),
        ({"waits": {"quiet": "long"}}, "no float"),
        ({"peer": []}, "a \\[\\[peer\\]\\]"),
        ({"peer": [PEER, PEER]}, "no two"),
        ({"peer": [{"aet": "X"}]}, "lacks host"),
        ({"peer": [{**PEER, "aet": "A" * 17}]}, "no AE title"),
        ({"peer": [{**PEER, "aet": "a\\b"}]}, "no AE title"),
        ({"peer": [{**PEER, "addresses": ["300.1.1.1"]}]}, "300.1.1.1"),
        ({"peer": [{**PEER, "port": 0}]}, "nowhere to go"),
        ({"peer": [{**PEER, "port": 99999}]}, "99999 is no port"),
        ({"port": 111112}, "111112 is no port"),
        ({"http_port": -1}, "-1 is no port"),
        ({"send_to": "OTHER"}, "nowhere to go"),
        ({"rule": []}, "no model"),
        ({"peer": [{**PEER, "tls": True}]}, "no \\[tls\\]"),
        ({"host": "0.0.0.0"}, "seen by others"),
        ({"host": "::"}, "seen by others"),
        ({"plaintext": 1}, "no bool"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parsed(**changes)


@pytest.mark.parametrize("changes", [{"tls": TLS}, {"plaintext": True}])
def test_listening_to_others_takes_tls_or_a_decision(changes: dict[str, Any]) -> None:
    assert parsed(host="0.0.0.0", **changes).host == "0.0.0.0"


def test_file_that_is_no_toml_is_one_line_and_exit_2(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("peer = [")
    with pytest.raises(SegError, match="E-SERVE-CONFIG") as caught:
        read_config(str(path))
    assert caught.value.exit == 2


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from seg.infer.serve.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], check=False, capture_output=True, text=True, timeout=60
    )


def test_command_refuses_an_open_port_without_tls(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        'state = "x"\nhost = "0.0.0.0"\n[[peer]]\naet = "P"\nhost = "127.0.0.1"\nport = 1\n[[rule]]\nmodel = "m"\n'
    )
    done = serve("--config", str(path))
    assert done.returncode == 2
    assert "seen by others" in done.stderr
    assert "Traceback" not in done.stderr


def test_command_needs_a_peer_and_a_known_form() -> None:
    assert serve("--model", "m").returncode == 2
    assert serve("--model", "m", "--peer", "nonsense").returncode == 2
    assert serve().returncode == 2
    done = serve("--config", "node.toml", "--port", "104")
    assert (done.returncode, "leave --port out" in done.stderr) == (2, True), done.stderr


def test_status_finds_the_queue_by_the_file(tmp_path: Path) -> None:
    Queue(tmp_path / "queue").close()
    path = tmp_path / "node.toml"
    path.write_text(
        f'state = "{tmp_path}/queue"\n[[peer]]\naet = "P"\nhost = "127.0.0.1"\nport = 1\n[[rule]]\nmodel = "m"\n'
    )
    done = serve("--config", str(path), "--status")
    assert (done.returncode, done.stdout) == (0, "arriving 0\n"), done.stderr
    assert serve("--config", str(path), "--status", "--model", "m").returncode == 2
    done = serve("--config", str(path), "--status", "--state", "elsewhere")
    assert (done.returncode, "leave --state out" in done.stderr) == (2, True), done.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom seg.infer.serve import cli\ntry:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('numpy', 'pydicom', 'pynetdicom', 'sqlite3', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_first_rule_that_fits_decides() -> None:
    rules = parsed(
        rule=[
            {"model": "a", "modality": "MR", "description": "*hcrop*"},
            {"model": "b", "body_part": "HEART"},
            {"model": "c", "modality": "CT"},
        ]
    ).rules

    def model(**facts: str) -> str | None:
        rule = fitting_rule(rules, Facts(**facts))
        return rule.model if rule else None

    assert model(modality="MR", description="11_HCropVolume") == "a"
    assert model(modality="MR", description="T1", body_part="heart") == "b"
    assert model(modality="CT") == "c"
    assert model(modality="MR", description="T1") is None
