"""The page's tables are the command's, made anew."""

import pytest

from bs_cluster.planning.page import MARK, PAGE, written


def test_the_page_holds_four_plans_and_two_schedules():
    assert len(MARK.findall(PAGE.read_text())) == 6


@pytest.mark.long
@pytest.mark.slow
def test_the_page_shows_what_the_command_says():
    page = PAGE.read_text()
    assert written(page) == page, "write it anew: python -m bs_cluster.planning.page"
