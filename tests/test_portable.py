"""The program behind make portable: that what it asks for is what runs."""

import platform

import portable
import pytest

NEHALEM = portable.LEAST_SIMILAR


def test_each_kernel_instruction_set_and_number_of_threads_occurs():
    processors = portable.PROCESSORS
    assert {p.kernel for p in processors} >= {"Nehalem", "Haswell", "Zen", "SkylakeX"}
    assert {p.instructions for p in processors} == {"default", "avx2", "avx512"}
    assert {p.threads for p in processors} == {1, 2}
    assert {p.instructions for p in processors if p.kernel == "SkylakeX"} == {"avx512"}
    assert NEHALEM in processors


def test_no_choice_of_the_caller_is_left(monkeypatch):
    for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_NUM_THREADS", "NPY_X", "OMP_X"):
        monkeypatch.setenv(name, "8")
    monkeypatch.setenv("VAELAB_MIRROR", "kept")
    variables = portable.own()
    assert "8" not in {variables.get(name) for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    assert not [name for name in variables if name.startswith(("OPENBLAS", "MKL", "NPY", "OMP"))]
    assert variables["VAELAB_MIRROR"] == "kept" and "PATH" in variables


def test_numpy_goes_no_further_than_torch():
    features = ["FMA3", "AVX2", "AVX512F", "X86_V3", "X86_V4", "AVX512_ICL", "ASIMDHP"]
    off = {
        p.instructions: p.environment(features)["NPY_DISABLE_CPU_FEATURES"].split()
        for p in portable.PROCESSORS
    }
    assert off == {
        "default": features[:-1],
        "avx2": ["AVX512F", "X86_V4", "AVX512_ICL"],
        "avx512": [],
    }


def test_a_machine_plays_only_what_it_has():
    able = {p.instructions for p in portable.PROCESSORS if p.is_within("avx2")}
    assert able == {"default", "avx2"}


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="an x86 kernel")
def test_the_kernels_asked_for_are_in_use():
    machine = portable.look(portable.own())
    there = portable.look(portable.own() | NEHALEM.environment(machine["features"]))
    assert there["kernels"] == {"numpy": "Nehalem", "scipy": "Nehalem"}
    assert (there["torch"], there["threads"]) == ("default", 1)
    of_nehalem = {"SSSE3", "SSE41", "POPCNT", "SSE42", "X86_V2"}  # numpy before 2.4 lists them
    assert of_nehalem.issuperset(there["features"])


def test_a_process_that_dies_has_nothing_in_use():
    assert portable.look(portable.own() | {"PYTHONHOME": "nowhere"}) is None


def test_the_table_shows_the_largest_difference():
    def number(expected, seen, units, relative):
        pair = {"expected": expected, "seen": seen}
        return pair | {"units": units, "relative": relative, "tolerance": 1}

    cells = [
        {"cell": 3, "numbers": [number("7", "7", 0, 0), number("0.5", "0.6", 1, 0.2)]},
        {"cell": 4, "numbers": [number("0.964", "0.966", 2, 0.002)]},
    ]
    cells = [cell | {"complaints": []} for cell in cells]
    cells[1]["complaints"] = ["0.966 where the notebook has 0.964"]
    lesson = portable.Lesson("04_vae", cells, ["FAILED course/04_vae.ipynb::Cell 4"])
    first, second, third = lesson.lines()
    assert first.split() == [
        *("04_vae", "3", "2", "2", "2.0e-03", "1"),
        *("cell", "4:", "0.964", "->", "0.966"),
    ]
    assert second.strip() == "cell 4: 0.966 where the notebook has 0.964"
    assert third.strip() == "FAILED course/04_vae.ipynb::Cell 4"
    assert portable.Lesson("02_elbo", cells[:0], []).lines()[0].split() == ["02_elbo", "0", "0"]
