"""An aggregator that puts a device whose certificate was revoked into a roster."""

from __future__ import annotations

from dataclasses import replace

from client_sdk.enrolment import new_partner_key
from secagg import client
from secagg.simulation import make_devices
from tests.kits.adversary import Adversary
from tests.kits.corrupt import CLIENTS, LIAR, identity, one_hot, task


def test_a_roster_with_a_revoked_entry_is_refused_and_the_entry_named() -> None:
    shown = task()
    partner = shown.devices[LIAR].certificate.partner_key
    devices = make_devices(shown, one_hot())
    for device in devices:
        device.config = replace(device.config, revoked={(partner, identity(shown))})
    adversary = Adversary(shown, devices=devices)
    adversary.share()
    for device in adversary.devices:
        assert isinstance(device.state, client.Failed)
        assert device.state.reason == "certificate-revoked"
        assert device.state.culprit == identity(shown)


def test_another_partners_list_ends_no_certificate() -> None:
    shown = task()
    other = new_partner_key().key
    devices = make_devices(shown, one_hot())
    for device in devices:
        device.config = replace(device.config, revoked={(other, identity(shown))})
    adversary = Adversary(shown, devices=devices)
    adversary.share()
    assert len([d for d in adversary.devices if isinstance(d.state, client.Shared)]) == CLIENTS
