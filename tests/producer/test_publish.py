"""Tokens and ends: written once, in order, by the owner alone."""

from producer import calls, wire


def test_one_call_publishes_for_the_whole_batch(desk, make_publication):
    """Each job of the batch is judged on its own; a fenced one does not stop the others."""
    ids = [desk.submit() for _ in range(3)]
    first, second, third = (desk.take("a") for _ in range(3))
    new = desk.run(calls.reclaim(desk.keys, "b", 0, calls.ReclaimCursor(), 1)).deliveries[0]
    desk.claim(new, "b")
    replies = desk.run(
        calls.publish(desk.keys, "a", [make_publication(claim, 0, [7, 8]) for claim in (first, second, third)])
    )
    assert [reply.status for reply in replies] == ["fenced", "ok", "ok"]
    assert [desk.token_ids(job_id) for job_id in ids] == [[], [7, 8], [7, 8]]


def test_publishing_for_no_job_is_allowed(desk):
    """An empty batch answers an empty list."""
    assert desk.run(calls.publish(desk.keys, "a", [])) == []


def test_a_resent_publish_is_not_doubled(desk):
    """The second send of the same tokens answers already, and the stream holds them once."""
    job_id = desk.submit()
    claim = desk.take("a")
    assert desk.publish(claim, "a", 0, [1, 2]).status == "ok"
    again = desk.publish(claim, "a", 0, [1, 2])
    assert (again.status, again.offset) == ("already", 2)
    assert desk.token_ids(job_id) == [1, 2]


def test_a_publish_past_the_tail_is_a_gap(desk):
    """A start beyond the stream's tail is refused with the offset to go back to; sending from there heals it."""
    job_id = desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1])
    reply = desk.publish(claim, "a", 3, [4])
    assert (reply.status, reply.offset) == ("gap", 1)
    assert desk.publish(claim, "a", 1, [2, 3, 4]).status == "ok"
    assert desk.token_ids(job_id) == [1, 2, 3, 4]


def test_a_longer_resend_is_a_gap_too(desk):
    """When a lost reply is followed by a publish with more tokens, the answer says from where to send."""
    desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1, 2])  # the reply is lost
    reply = desk.publish(claim, "a", 0, [1, 2, 3])
    assert (reply.status, reply.offset) == ("gap", 2)


def test_asking_with_nothing_new_tells_whether_the_job_is_still_ours(desk):
    """A publication of no tokens writes nothing and answers ok, or fenced once another owns the job."""
    job_id = desk.submit()
    claim = desk.take("a")
    assert desk.publish(claim, "a", 0, []).status == "ok"
    assert len(desk.events(job_id)) == 1
    desk.run(calls.cancel(desk.keys, job_id))
    assert desk.publish(claim, "a", 0, []).status == "fenced"


def test_a_deleted_stream_is_written_again_from_memory(desk):
    """If someone deletes the events of a running job, the gap goes back to 0 and all is sent again."""
    job_id = desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1, 2])
    desk.redis.delete(desk.keys.tokens(job_id))
    reply = desk.publish(claim, "a", 2, [3])
    assert (reply.status, reply.offset) == ("gap", 0)
    assert desk.publish(claim, "a", 0, [1, 2, 3]).status == "ok"
    assert desk.token_ids(job_id) == [1, 2, 3]


def test_a_finish_writes_the_last_tokens_the_end_and_the_result(desk):
    """Afterwards the job has ended, its lane is empty, and everything of it has a time to live."""
    job_id = desk.submit(result_ttl=100)
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1])
    reply = desk.finish(claim, "a", 1, [2, 3], reason="length")
    assert (reply.status, reply.offset) == ("ok", 3)
    assert desk.token_ids(job_id) == [1, 2, 3]
    ended = desk.events(job_id)[-1]
    assert (ended.kind, ended.reason, ended.offset) == ("ended", "length", 3)
    assert wire.decode_result(desk.redis.get(desk.keys.result(job_id)), job_id).finish_reason == "length"
    status = desk.status(job_id)
    assert (status.state, status.offset, status.consumer, status.ended) == ("length", 3, None, True)
    assert desk.redis.xlen(desk.keys.lane("normal")) == desk.pending() == 0
    assert 0 < desk.redis.ttl(desk.keys.tokens(job_id)) <= 100
    assert 0 < desk.redis.ttl(desk.keys.result(job_id)) <= 100
    assert desk.redis.ttl(desk.keys.job(job_id)) > 86_400
    assert desk.redis.hget(desk.keys.job(job_id), "payload") is None


def test_a_resent_finish_is_one_finish(desk):
    """The second send of a finish answers already; there is one end."""
    job_id = desk.submit()
    claim = desk.take("a")
    assert desk.finish(claim, "a", 0, [1]).status == "ok"
    again = desk.finish(claim, "a", 0, [1])
    assert (again.status, again.offset) == ("already", 1)
    assert [event.kind for event in desk.events(job_id)] == ["started", "tokens", "ended"]


def test_a_finish_after_its_tokens_were_published_adds_only_the_end(desk):
    """When the last publish went through but its reply was lost, finish does not write those tokens twice."""
    job_id = desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [1, 2])
    assert desk.finish(claim, "a", 0, [1, 2]).status == "ok"
    assert desk.token_ids(job_id) == [1, 2]


def test_a_finish_past_the_tail_is_a_gap(desk):
    """A finish whose tokens do not join the stream's tail changes nothing and says where the tail is."""
    job_id = desk.submit()
    claim = desk.take("a")
    reply = desk.finish(claim, "a", 2, [3])
    assert (reply.status, reply.offset) == ("gap", 0)
    assert desk.status(job_id).state == "running"
    assert desk.pending() == 1


def test_nothing_follows_an_end(desk):
    """The owner that finished a job is its owner no more."""
    job_id = desk.submit()
    claim = desk.take("a")
    desk.finish(claim, "a", 0, [1])
    assert desk.publish(claim, "a", 1, [2]).status == "fenced"
    assert desk.renew("a", claim) == [False]
    assert desk.hand_back("a", claim) == [False]
    assert desk.events(job_id)[-1].kind == "ended"


def test_entries_carry_epoch_and_offset_in_their_ids(desk):
    """An event's id is `<epoch>-<offset after it>`, and the end's epoch is one more."""
    job_id = desk.submit()
    claim = desk.take("a")
    desk.publish(claim, "a", 0, [5, 6])
    desk.finish(claim, "a", 2)
    ids = [entry.decode() for entry, _ in desk.redis.xrange(desk.keys.tokens(job_id))]
    assert ids == [f"{claim.epoch}-0", f"{claim.epoch}-2", f"{claim.epoch + 1}-2"]
