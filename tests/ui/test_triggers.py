from __future__ import annotations

import pytest

from composer.ui.triggers import with_trigger, without_trigger


@pytest.mark.parametrize(
    ("prompt", "trigger", "expected"),
    [
        ("", "zibo fox", "zibo fox"),
        ("a cat", "zibo fox", "a cat, zibo fox"),
        ("a cat, ", "zibo fox", "a cat, zibo fox"),
        ("a Zibo  Fox in snow", "zibo fox", "a Zibo  Fox in snow"),
        ("a zibo foxtrot", "zibo fox", "a zibo foxtrot, zibo fox"),
        ("a cat", "", "a cat"),
        ("a cat", "f(o)x*", "a cat, f(o)x*"),
    ],
)
def test_a_trigger_is_added_once(prompt: str, trigger: str, expected: str) -> None:
    assert with_trigger(prompt, trigger) == expected
    assert with_trigger(expected, trigger) == expected


@pytest.mark.parametrize(
    ("prompt", "trigger", "expected"),
    [
        ("a cat, zibo fox", "zibo fox", "a cat"),
        ("zibo fox", "zibo fox", ""),
        ("a zibo fox in the snow", "zibo fox", "a zibo fox in the snow"),
        ("a cat, on a mat", "", "a cat, on a mat"),
    ],
)
def test_a_trigger_leaves_where_it_was_put(prompt: str, trigger: str, expected: str) -> None:
    assert without_trigger(prompt, trigger) == expected
