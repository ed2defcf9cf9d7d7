"""What the lab decides: networks, addresses, names and the files that it writes. Booting is in `tests/lab`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.gatehouse.mcp.plugins.module_utils.lab_root import (
    Entry,
    LabError,
    certificates,
    lab_sources,
    locked,
    mirrors,
    mounts_below,
    parse_sources,
    remove_tree,
)
from ansible_collections.gatehouse.mcp.plugins.modules.lab import (
    Host,
    Subnet,
    assign_addresses,
    check_names,
    dns_settings,
    free_number,
    inventory,
    packet_rules,
    refuse_foreign_names,
    require_programs,
    require_root,
    with_block,
)

EVERYTHING = ("gateway_edge", "gateway_redis", "gateway_mcp")
GATE = Host("gate1", "trixie", EVERYTHING, "198.18.3.2")
OTHER = Host("mcp1", "bookworm", ("gateway_mcp",), "198.18.3.3")


def wanted(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "release": "trixie", "groups": list(EVERYTHING)} for name in names]


class TestSubnet:
    def test_numbers_cover_the_benchmark_range(self) -> None:
        assert str(Subnet(0).network) == "198.18.0.0/24"
        assert str(Subnet(300).network) == "198.19.44.0/24"
        assert str(Subnet(511).network) == "198.19.255.0/24"
        assert Subnet(7).gateway == "198.18.7.1"

    def test_a_name_fits_into_a_link_name(self) -> None:
        assert len(Subnet(511).name) <= 15

    def test_the_first_free_one_is_taken(self) -> None:
        assert free_number([0, 1], ["198.18.2.0/24", "192.0.2.0/24"], None) == 3

    def test_what_a_lab_had_is_taken_again(self) -> None:
        assert free_number([0], [], 40) == 40

    def test_what_a_lab_had_is_given_up_when_another_has_it(self) -> None:
        assert free_number([40], [], 40) == 0
        assert free_number([], ["198.18.40.7"], 40) == 0

    def test_a_route_to_all_of_it_leaves_nothing(self) -> None:
        with pytest.raises(LabError, match="take a lab down"):
            free_number([], ["198.18.0.0/15"], None)


class TestAddresses:
    def test_they_are_given_in_order(self) -> None:
        assert [host.address for host in assign_addresses(Subnet(3), wanted("a", "b"), {})] == [
            "198.18.3.2",
            "198.18.3.3",
        ]

    def test_a_host_keeps_its_own_when_others_come_and_go(self) -> None:
        before = {"a": "198.18.3.2", "b": "198.18.3.3"}
        hosts = assign_addresses(Subnet(3), wanted("c", "b"), before)
        assert {host.name: host.address for host in hosts} == {"c": "198.18.3.2", "b": "198.18.3.3"}

    def test_a_lab_that_moves_keeps_the_last_number(self) -> None:
        hosts = assign_addresses(Subnet(4), wanted("b"), {"b": "198.18.3.9"})
        assert hosts[0].address == "198.18.4.9"


class TestHostsFile:
    text = "127.0.0.1 localhost\n"

    def test_a_block_is_added_once(self) -> None:
        once = with_block(self.text, "lab a", ["198.18.0.2 auth.a.test"])
        assert once == self.text + "# BEGIN lab a\n198.18.0.2 auth.a.test\n# END lab a\n"
        assert with_block(once, "lab a", ["198.18.0.2 auth.a.test"]) == once

    def test_a_block_is_replaced_where_it_stands(self) -> None:
        both = with_block(with_block(self.text, "lab a", ["x"]), "lab b", ["y"])
        assert with_block(both, "lab a", ["z"]) == both.replace("\nx\n", "\nz\n")

    def test_removal_leaves_the_rest_as_it_was(self) -> None:
        for text in (self.text, "", "# a comment\n\n127.0.0.1 x\n"):
            assert with_block(with_block(text, "lab a", ["x"]), "lab a", []) == text

    def test_a_lab_whose_name_begins_alike_is_another(self) -> None:
        text = with_block(self.text, "lab a2", ["x"])
        assert with_block(text, "lab a", []) == text

    def test_a_last_line_without_an_end_stays_a_line(self) -> None:
        assert with_block("127.0.0.1 x", "m", ["y"]).startswith("127.0.0.1 x\n# BEGIN m\n")

    def test_a_name_that_someone_else_gives_an_address_is_refused(self) -> None:
        with pytest.raises(LabError, match=r"auth\.a\.test .* lab_domain"):
            refuse_foreign_names("10.0.0.1 www.a.test auth.a.test", ["auth.a.test"])
        refuse_foreign_names("# 10.0.0.1 auth.a.test\n10.0.0.1 x # auth.a.test", ["auth.a.test"])


class TestSettings:
    def test_every_name_is_an_edge_except_the_other_hosts(self) -> None:
        lines = dns_settings(Subnet(3), "lab.test", [GATE, OTHER]).splitlines()
        assert "listen-address=198.18.3.1" in lines
        assert "bind-interfaces" in lines
        assert "address=/lab.test/198.18.3.2" in lines
        assert "host-record=mcp1.lab.test,198.18.3.3" in lines
        assert "local=/lab.test/" in lines

    def test_packets_go_out_masqueraded_and_come_in_only_as_answers(self) -> None:
        rules = packet_rules(Subnet(3))
        assert rules.startswith("table ip ghlab3 {")
        assert 'ip saddr 198.18.3.0/24 oifname != "ghlab3" masquerade' in rules
        assert 'oifname "ghlab3" iifname != "ghlab3" ct state != { established, related } drop' in rules

    def test_the_inventory_knows_groups_and_connection(self) -> None:
        listed = inventory([GATE, OTHER], "lab.test", Path("/a b/lab"), Path("/run/x"), "hash")
        assert listed["gateway_mcp"] == {"hosts": ["gate1", "mcp1"]}
        assert listed["gateway_edge"] == {"hosts": ["gate1"]}
        known = listed["_meta"]["hostvars"]["mcp1"]
        assert known["ansible_host"] == "198.18.3.3"
        assert "'UserKnownHostsFile=/a b/lab/known_hosts'" in known["ansible_ssh_common_args"]
        assert "StrictHostKeyChecking=yes" in known["ansible_ssh_common_args"]
        assert known["lab_domain"] == "lab.test"


class TestRefusals:
    def test_missing_programs_are_named_by_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "shutil.which", lambda program: None if program in ("nft", "dnsmasq") else program
        )
        with pytest.raises(LabError, match=r"apt-get install dnsmasq-base nftables$"):
            require_programs()

    def test_a_missing_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda program: program)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(LabError, match="install argon2-cffi"):
            require_programs()

    def test_anyone_but_root_is_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("os.geteuid", lambda: 1000)
        with pytest.raises(LabError, match="needs root"):
            require_root()


class TestNames:
    @pytest.mark.parametrize("name", ["", "Demo", "a/b", "-a", "a b", "x" * 40])
    def test_a_lab_name_is_a_label(self, name: str) -> None:
        with pytest.raises(LabError, match=r"^lab_name:"):
            check_names(name, "lab.test", wanted("a"))

    @pytest.mark.parametrize("domain", ["", "test", "a..b", "a.test/", "*.test"])
    def test_a_domain_has_two_labels(self, domain: str) -> None:
        with pytest.raises(LabError, match=r"^lab_domain:"):
            check_names("demo", domain, wanted("a"))

    @pytest.mark.parametrize("hosts", [[], ["a", "a"], ["../a"], ["A"]])
    def test_hosts_are_labels_and_differ(self, hosts: list[str]) -> None:
        with pytest.raises(LabError, match=r"^lab_hosts:"):
            check_names("demo", "lab.test", wanted(*hosts))

    def test_good_names_pass(self) -> None:
        check_names("demo-2", "gatehouse.test", wanted("gate1", "mcp-1"))


class TestSources:
    deb822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
"""

    def test_both_formats_are_read(self) -> None:
        one_line = "deb [arch=amd64 signed-by=/x] http://old.example/debian bookworm main\n#deb http://no.example x main\n"
        assert parse_sources([("a.sources", self.deb822), ("b.list", one_line)]) == [
            Entry("http://mirror.example/debian", ("bookworm", "bookworm-updates")),
            Entry("http://mirror.example/security", ("bookworm-security",)),
            Entry("http://old.example/debian", ("bookworm",)),
        ]

    def test_archive_and_security_are_told_apart(self) -> None:
        entries = [Entry("other", ("nodistro",)), *parse_sources([("a.sources", self.deb822)])]
        assert mirrors(entries, "bookworm") == (
            "http://mirror.example/debian",
            "http://mirror.example/security",
        )

    def test_no_debian_source_is_said(self) -> None:
        with pytest.raises(LabError, match="`trixie`"):
            mirrors([Entry("other", ("nodistro",))], "trixie")

    def test_a_lab_s_sources_name_its_own_release(self) -> None:
        text = lab_sources("http://mirror.example/debian", "http://mirror.example/security", "trixie")
        assert parse_sources([("x.sources", text)]) == [
            Entry("http://mirror.example/debian", ("trixie", "trixie-updates")),
            Entry("http://mirror.example/security", ("trixie-security",)),
        ]

    def test_certificates_are_cut_out_of_a_bundle(self) -> None:
        pem = "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----"
        assert certificates(f"# one\n{pem}\nnoise\n{pem}\n") == [pem, pem]


class TestFolders:
    def test_a_folder_may_be_removed_by_its_holder_and_made_again(self, tmp_path: Path) -> None:
        folder = tmp_path / "lab"
        with locked(folder):
            folder.rmdir()
        assert not folder.exists()
        with locked(folder):
            assert folder.stat().st_mode & 0o777 == 0o700

    def test_removal_takes_all_of_it(self, tmp_path: Path) -> None:
        folder = tmp_path / "lab"
        (folder / "a").mkdir(parents=True)
        (folder / "a" / "b").write_text("x")
        (tmp_path / "lab2").mkdir()
        remove_tree(folder)
        remove_tree(folder)
        assert [path.name for path in tmp_path.iterdir()] == ["lab2"]

    def test_mounts_are_found_deepest_first(self) -> None:
        found = mounts_below(Path("/"))
        assert found[-1] == "/"
        assert "/proc" in found
