"""Stop strings over a text that arrives in parts."""

from hypothesis import given
from hypothesis import strategies as st

from worker.text.stops import StopStrings

# Two letters only, so that stop strings overlap, contain and follow one another.
SOME_STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=5)
SOME_TEXT = st.text("abc", max_size=40)


@given(SOME_STOPS, SOME_TEXT)
def test_a_state_knows_the_longest_stop_string_its_text_ends_in(stops, text):
    """After each character `ended` is the length of the longest stop string that the text so far ends in, or 0."""
    automaton, state = StopStrings(stops), 0
    for read, char in enumerate(text, start=1):
        state = automaton.next[state].get(char, 0)
        assert automaton.ended[state] == max((len(stop) for stop in stops if text[:read].endswith(stop)), default=0)


@given(SOME_STOPS, SOME_TEXT)
def test_a_state_knows_how_much_of_its_text_may_still_become_a_stop_string(stops, text):
    """After each character `held` is the length of the text's longest end that is a proper prefix of a stop string."""
    automaton, state = StopStrings(stops), 0
    prefixes = {stop[:length] for stop in stops for length in range(len(stop))}
    for read, char in enumerate(text, start=1):
        state = automaton.next[state].get(char, 0)
        assert automaton.held[state] == max(len(prefix) for prefix in prefixes if text[:read].endswith(prefix))
