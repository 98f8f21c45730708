"""The corpus as clients: real, uneven, disjoint, the same every time."""

from __future__ import annotations

import pytest

from secagg.errors import ConfigurationError
from secagg_cli.models.corpus import CLIENTS_MAX, load_clients, public_pairs


def _questions(pairs):
    return {question.casefold() for question, _ in pairs}


@pytest.mark.parametrize("n", [1, 3, 6, 8, 13, CLIENTS_MAX])
def test_every_client_has_data_and_shares_no_pair(n):
    clients = load_clients(n)
    assert len(clients) == n
    assert len({client.name for client in clients}) == n
    pairs = [pair for client in clients for pair in (*client.train, *client.heldout)]
    assert len(pairs) == len(set(pairs))
    assert all(len(client.train) >= 8 and client.heldout for client in clients)


def test_held_out_questions_are_in_no_training_data_and_not_public():
    clients = load_clients(8)
    heldout = _questions(pair for client in clients for pair in client.heldout)
    trained = _questions(pair for client in clients for pair in client.train)
    assert not heldout & trained
    assert len(heldout & _questions(public_pairs())) <= 1  # small talk meets "emotion"


def test_the_demos_six_clients_are_uneven_and_sized_for_two_cores():
    sizes = [len(client.train) for client in load_clients(6)]
    assert max(sizes) >= 4 * min(sizes)
    assert 400 <= sum(sizes) <= 600
    assert 45 <= sum(len(client.heldout) for client in load_clients(6)) <= 65


def test_the_split_repeats_and_follows_the_seed():
    assert load_clients(6, seed=1) == load_clients(6, seed=1)
    assert load_clients(6, seed=1)[0].heldout != load_clients(6, seed=2)[0].heldout


def test_more_clients_divide_the_same_text():
    def text(clients):
        return sorted(pair for client in clients for pair in client.train)

    assert text(load_clients(8)) == text(load_clients(20))


@pytest.mark.parametrize("n", [0, -1, CLIENTS_MAX + 1])
def test_impossible_numbers_of_clients_are_refused(n):
    with pytest.raises(ConfigurationError, match="corpus-clients"):
        load_clients(n)
