from studyloom.config.schema import check_name


def test_a_key_that_is_added_to_a_section_of_the_schema_is_refused_too(command, capsys):
    assert command("+study.trails=3") == 2
    assert "error: study.trails: no such key" in capsys.readouterr().err


def test_a_name_that_is_no_folder_name_ends_the_command_with_2_before_a_folder_is_made(
    command, capsys, tmp_path
):
    assert command("study.name='a/b'") == 2
    assert capsys.readouterr().err == f"error: {check_name('a/b')}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_one_that_a_folder_can_have():
    for name in ("", ".", "..", "../up", r"a\b", "a\0b", "x" * 201, "a\nb", "a\x1bb"):
        assert check_name(name).startswith(f"study.name must be a folder name, not {name[:20]!r}")
    assert "202 bytes" in check_name("ä" * 101)
    for name in ("mnist", "a b", "ä" * 100, "x" * 200, ".hidden", "a.b", "[red]", "-x", "{x}"):
        assert check_name(name) is None
