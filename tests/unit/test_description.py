"""A run's description says in words what its tags record."""

from pipelines.description import description

TAGS = {
    "stage": "distill",
    "input.init": "models:/flow-teacher/3",
    "input.init.run": "0123456789abcdef",
    "input.labels": "/data/labels",
    "distillations": "2",
    "made": "models:/flow-student/1",
    "version.torch": "2.13.0",
}


def test_a_description_names_each_input_by_what_it_is() -> None:
    text = description(TAGS, "7")
    assert "- model to start from: `models:/flow-teacher/3`, made by [run 01234567]" in text
    assert "- pseudo-labels: `/data/labels`\n" in text


def test_a_description_links_to_the_run_that_made_an_input() -> None:
    assert "](#/experiments/7/runs/0123456789abcdef?" in description(TAGS, "7")


def test_a_description_explains_how_many_distillations_there_were() -> None:
    assert "2 teachers stand between the unlabelled videos and this result" in description(TAGS, "7")
    assert "no teacher stands between" in description({"distillations": "0"}, "7")


def test_a_description_names_what_came_of_the_run() -> None:
    assert description(TAGS, "7").endswith("Model: `models:/flow-student/1`")


def test_a_description_shows_a_picture_of_the_run() -> None:
    text = description(TAGS, "7", "89ab", "images/validation~a+step+4.png")
    assert text.endswith("(get-artifact?path=images%2Fvalidation~a%2Bstep%2B4.png&run_uuid=89ab)")


def test_a_name_in_a_description_stays_within_its_code() -> None:
    text = description({"input.videos": "a`](https://example.org)"}, "7")
    assert text.count("`") == 2
