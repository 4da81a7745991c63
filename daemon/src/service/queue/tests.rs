use super::*;

/// A client of which only the connection is known.
impl From<&str> for Client {
    fn from(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }
}

/// Has a client's app in the foreground.
fn front(queue: &Queue, name: &str) {
    queue.set_foreground(Some(App { connection: name.into(), ..App::default() }));
}

fn queue(gate: Gate, parallel: u32, places: u32) -> Arc<Queue> {
    Queue::new(gate, limits(parallel, places))
}

fn limits(parallel: u32, places: u32) -> Limits {
    let (user_parallel, user_places) = (u32::MAX, u32::MAX);
    Limits { parallel, places, overtaking: true, user_parallel, user_places }
}

#[tokio::test]
async fn first_come_first_served_up_to_the_limits() {
    let queue = queue(Gate::Open, 1, 2);
    let first = queue.enter(1, "a", Priority::Normal).unwrap().turn(|_| {}).await.unwrap();
    let second = queue.enter(2, "a", Priority::Normal).unwrap();
    let third = queue.enter(3, "a", Priority::Normal).unwrap();
    assert!(matches!(
        queue.enter(4, "a", Priority::Normal),
        Err(Error::QueueFull { limit: 2, .. })
    ));
    assert_eq!(queue.counts(), (1, 2));

    let mut positions = Vec::new();
    let (second, third) = {
        let third = third.turn(|position| positions.push(position));
        tokio::pin!(third);
        assert!(futures::poll!(&mut third).is_pending());
        drop(first);
        let second = second.turn(|_| {}).await.unwrap();
        assert!(futures::poll!(&mut third).is_pending());
        drop(second);
        ((), third.await.unwrap())
    };
    let () = second;
    assert_eq!(positions, [1, 0]);
    assert_eq!(queue.counts(), (1, 0));
    drop(third);
    queue.idle().await;
}

#[tokio::test]
async fn a_closed_gate_ends_those_who_wait() {
    let queue = queue(Gate::Paused, 1, 1);
    let turn = queue.enter(1, "a", Priority::Normal).unwrap().turn(|_| {});
    tokio::pin!(turn);
    assert!(futures::poll!(&mut turn).is_pending());
    queue.set_gate(Gate::Closed(Error::ShuttingDown));
    assert_eq!(turn.await.err(), Some(Error::ShuttingDown));
    assert!(matches!(queue.enter(2, "a", Priority::Normal), Err(Error::ShuttingDown)));
    assert_eq!(queue.counts(), (0, 0));
}

#[tokio::test]
async fn those_who_waited_for_what_failed_are_told() {
    let queue = queue(Gate::Paused, 1, 2);
    let waiting = queue.enter(1, "a", Priority::Normal).unwrap().turn(|_| {});
    queue.refuse_waiting(Priority::Interactive, &Error::ShuttingDown);
    let later = queue.enter(2, "a", Priority::Normal).unwrap().turn(|_| {});
    queue.set_gate(Gate::Open);
    assert_eq!(waiting.await.err(), Some(Error::ShuttingDown));
    assert!(later.await.is_ok());
}

#[tokio::test]
async fn a_ticket_that_is_dropped_leaves_the_queue() {
    let queue = queue(Gate::Paused, 1, 1);
    drop(queue.enter(1, "a", Priority::Normal).unwrap().turn(|_| {}));
    assert_eq!(queue.counts(), (0, 0));
}

#[tokio::test]
async fn the_most_urgent_goes_first() {
    let queue = queue(Gate::Paused, 1, 4);
    let enter = |id, priority| {
        let ticket = queue.enter(id, "a", priority).unwrap();
        async move { ticket.turn(|_| {}).await.unwrap() }
    };
    let background = enter(1, Priority::Background);
    let normal = enter(2, Priority::Normal);
    let interactive = enter(3, Priority::Interactive);
    tokio::pin!(background, normal, interactive);
    assert!(futures::poll!(&mut background).is_pending());
    assert!(futures::poll!(&mut normal).is_pending());
    assert!(futures::poll!(&mut interactive).is_pending());
    queue.set_gate(Gate::Open);
    assert!(futures::poll!(&mut background).is_pending());
    assert!(futures::poll!(&mut normal).is_pending());
    drop(interactive.await);
    assert!(futures::poll!(&mut background).is_pending());
    drop(normal.await);
    drop(background.await);
}

#[tokio::test]
async fn an_interactive_request_needs_no_place_of_a_background_one() {
    for overtaking in [true, false] {
        let queue = Queue::new(Gate::Open, Limits { overtaking, ..limits(1, 4) });
        let running =
            queue.enter(1, "a", Priority::Background).unwrap().turn(|_| {}).await.unwrap();
        let normal = queue.enter(2, "a", Priority::Normal).unwrap().turn(|_| {});
        let first = queue.enter(3, "a", Priority::Interactive).unwrap().turn(|_| {});
        let second = queue.enter(4, "a", Priority::Interactive).unwrap().turn(|_| {});
        tokio::pin!(normal, first, second);
        assert!(futures::poll!(&mut normal).is_pending());
        let first = futures::poll!(&mut first);
        assert_eq!(first.is_ready(), overtaking);
        assert!(futures::poll!(&mut second).is_pending(), "one place, not more");
        drop(running);
    }
}

#[tokio::test]
async fn who_has_no_room_holds_up_nobody_who_has() {
    let queue = queue(Gate::Open, 1, 4);
    let running = queue.enter(1, "a", Priority::Background).unwrap().turn(|_| {}).await.unwrap();
    let aged = queue.enter(2, "a", Priority::Normal).unwrap();
    let hour = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
    queue.lock().waiting[0].since = hour;
    let aged = aged.turn(|_| {});
    tokio::pin!(aged);
    assert!(futures::poll!(&mut aged).is_pending());
    let interactive = queue.enter(3, "a", Priority::Interactive).unwrap().turn(|_| {});
    drop(interactive.await.unwrap());
    assert!(futures::poll!(&mut aged).is_pending());
    drop(running);
    drop(aged.await.unwrap());
}

#[test]
fn waiting_makes_more_urgent() {
    let since = Instant::now();
    let after = |seconds| since + Duration::from_secs(seconds);
    let waiting = |priority| {
        let (id, user, client, asked) = (1, "a".into(), Client::default(), priority);
        Waiting { id, user, client, asked, priority, since, ready: true, refused: None }
    };
    let rank = |priority, seconds| waiting(priority).rank(None, after(seconds));
    assert!(rank(Priority::Normal, 0) < rank(Priority::Background, 29));
    assert_eq!(rank(Priority::Normal, 0), rank(Priority::Background, 31));
    assert_eq!(rank(Priority::Interactive, 0), rank(Priority::Background, 3600));
    // From when its user had a place last.
    assert_eq!(waiting(Priority::Background).rank(Some(after(50)), after(61)), 2);
    assert_eq!(waiting(Priority::Background).rank(Some(after(50)), after(81)), 1);
}

/// The tickets of users, in the order in which they get the one place.
async fn order(queue: &Arc<Queue>, tickets: Vec<(&'static str, Ticket)>) -> Vec<&'static str> {
    let served = Arc::new(Mutex::new(Vec::new()));
    let turns = tickets.into_iter().map(|(name, ticket)| {
        let served = Arc::clone(&served);
        async move {
            let running = ticket.turn(|_| {}).await.unwrap();
            served.lock().unwrap().push(name);
            tokio::task::yield_now().await;
            drop(running);
        }
    });
    let all = futures::future::join_all(turns);
    tokio::pin!(all);
    assert!(futures::poll!(&mut all).is_pending());
    queue.set_gate(Gate::Open);
    all.await;
    served.lock().unwrap().clone()
}

#[tokio::test]
async fn users_take_turns() {
    let queue = queue(Gate::Paused, 1, 16);
    let mut tickets = Vec::new();
    for (id, name) in (1..).zip(["a", "a", "a", "a", "b", "b", "c", "a"]) {
        tickets.push((name, queue.enter(id, name, Priority::Normal).unwrap()));
    }
    let positions: Vec<_> = (1..=8).map(|id| queue.lock().position(id)).collect();
    assert_eq!(positions, [0, 3, 5, 6, 1, 4, 2, 7]);
    let urgent = queue.enter(9, "a", Priority::Interactive).unwrap();
    assert_eq!(queue.lock().position(7), 3);
    tickets.push(("urgent", urgent));
    // Who was served out of turn for what is urgent waits for the others.
    let expected = ["urgent", "b", "c", "a", "b", "a", "a", "a", "a"];
    assert_eq!(order(&queue, tickets).await, expected);
    assert!(queue.lock().users.is_empty(), "nobody is remembered");
}

#[tokio::test]
async fn who_was_served_last_waits_for_the_other() {
    let queue = queue(Gate::Open, 1, 16);
    let first = queue.enter(1, "a", Priority::Normal).unwrap().turn(|_| {}).await.unwrap();
    let second = queue.enter(2, "a", Priority::Normal).unwrap();
    let hour = Instant::now().checked_sub(Duration::from_secs(3600)).unwrap();
    // It has waited for long, and its user has not.
    queue.lock().waiting[0].since = hour;
    let other = queue.enter(3, "b", Priority::Normal).unwrap();
    let positions = [2, 3].map(|id| queue.lock().position(id));
    assert_eq!(positions, [1, 0]);
    let (second, other) = (second.turn(|_| {}), other.turn(|_| {}));
    tokio::pin!(second, other);
    assert!(futures::poll!(&mut other).is_pending());
    drop(first);
    assert!(futures::poll!(&mut second).is_pending());
    drop(other.await.unwrap());
    drop(second.await.unwrap());
}

#[tokio::test]
async fn places_are_left_to_what_is_more_urgent() {
    let limits = Limits { user_parallel: 4, user_places: 8, ..limits(4, 16) };
    let queue = Queue::new(Gate::Paused, limits);
    let mut tickets = Vec::new();
    let mut fill = |user: &str, priority| {
        let before = tickets.len();
        loop {
            match queue.enter(tickets.len() as u64, user, priority) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => return (tickets.len() - before, error),
            }
        }
    };
    // Four of them are for the places that run.
    for (priority, places, open) in
        [(Priority::Background, 10, 6), (Priority::Normal, 1, 7), (Priority::Interactive, 1, 8)]
    {
        let (entered, refused) = fill("a", priority);
        assert_eq!(entered, places, "{priority:?}");
        assert!(matches!(refused, Error::OverQuota { limit, .. } if limit == open), "{refused:?}");
    }
    for (priority, places, open) in
        [(Priority::Background, 4, 12), (Priority::Normal, 2, 14), (Priority::Interactive, 2, 16)]
    {
        let (entered, refused) = fill("b", priority);
        assert_eq!(entered, places, "{priority:?}");
        assert!(matches!(refused, Error::QueueFull { limit, .. } if limit == open), "{refused:?}");
    }
}

#[tokio::test]
async fn who_is_not_ready_holds_up_nobody() {
    let queue = queue(Gate::Open, 1, 16);
    let first = queue.enter(1, "a", Priority::Interactive).unwrap();
    drop(queue.enter(2, "b", Priority::Background).unwrap().turn(|_| {}).await.unwrap());
    drop(first.turn(|_| {}).await.unwrap());
}

#[tokio::test]
async fn one_user_has_no_more_than_its_places() {
    let limits = Limits { user_parallel: 2, user_places: 1, ..limits(3, 4) };
    let queue = Queue::new(Gate::Open, limits);
    let mut running = Vec::new();
    for id in [1, 2] {
        running.push(queue.enter(id, "a", Priority::Normal).unwrap().turn(|_| {}).await.unwrap());
    }
    let third = queue.enter(3, "a", Priority::Normal).unwrap();
    let refused = queue.enter(4, "a", Priority::Interactive).err();
    let Some(Error::OverQuota { limit: 1, retry_after_ms: 100.., .. }) = refused else {
        panic!("{refused:?}")
    };
    let third = third.turn(|_| {});
    tokio::pin!(third);
    assert!(futures::poll!(&mut third).is_pending(), "there is room, but not for this user");
    drop(queue.enter(5, "b", Priority::Background).unwrap().turn(|_| {}).await.unwrap());
    running.pop();
    drop(third.await.unwrap());
}

#[tokio::test]
async fn an_urgent_request_overtakes_its_own_users_background_ones() {
    let queue = Queue::new(Gate::Open, Limits { user_parallel: 1, ..limits(2, 4) });
    let enter = |id, priority| queue.enter(id, "a", priority).unwrap().turn(|_| {});
    let background = enter(1, Priority::Background).await.unwrap();
    let interactive = enter(2, Priority::Interactive).await.unwrap();
    let third = enter(3, Priority::Interactive);
    tokio::pin!(third);
    assert!(futures::poll!(&mut third).is_pending());
    drop((background, interactive));
}

#[tokio::test]
async fn the_app_in_the_foreground_goes_first() {
    let queue = queue(Gate::Paused, 1, 16);
    let enter = |queue: &Arc<Queue>| {
        let tickets = [
            (1, "a", "a", Priority::Interactive),
            (2, "b", "b", Priority::Interactive),
            (3, "b", "b in no hurry", Priority::Normal),
            (4, "b", "b later", Priority::Background),
            (5, "c", "c", Priority::Normal),
            (6, "d", "d", Priority::Interactive),
        ];
        let enter =
            |(id, client, name, priority)| (name, queue.enter(id, client, priority).unwrap());
        tickets.map(enter).into_iter().collect::<Vec<_>>()
    };
    // The urgent ones as they came, then users in turns.
    let tickets = enter(&queue);
    let without = ["a", "b", "d", "c", "b in no hurry", "b later"];
    assert_eq!(order(&queue, tickets).await, without);

    // Those who wait when it comes are ranked anew, and so is who comes later.
    queue.set_gate(Gate::Paused);
    let mut tickets = enter(&queue);
    front(&queue, "d");
    assert_eq!(queue.lock().position(6), 0);
    tickets.push(("late", queue.enter(7, "a", Priority::Interactive).unwrap()));
    tickets.push(("d again", queue.enter(8, "d", Priority::Interactive).unwrap()));
    let with = ["d", "d again", "a", "b", "c", "late", "b in no hurry", "b later"];
    assert_eq!(order(&queue, tickets).await, with);

    // And again when it goes.
    queue.set_gate(Gate::Paused);
    let tickets = enter(&queue);
    front(&queue, "b");
    queue.set_foreground(None);
    assert_eq!(order(&queue, tickets).await, without);
}

#[tokio::test]
async fn the_place_for_what_is_urgent_is_the_foregrounds() {
    let queue = queue(Gate::Open, 1, 8);
    front(&queue, "b");
    let enter = |id, client, priority| queue.enter(id, client, priority).unwrap().turn(|_| {});
    let background = enter(1, "c", Priority::Background).await.unwrap();
    let other = enter(2, "a", Priority::Interactive);
    tokio::pin!(other);
    assert!(futures::poll!(&mut other).is_pending());
    let own = enter(3, "b", Priority::Interactive).await.unwrap();
    assert_eq!(own.priority(), Priority::Interactive);
    drop(own);
    assert!(futures::poll!(&mut other).is_pending());
    // Who waits has it as soon as nobody is before it, and keeps it.
    front(&queue, "a");
    let other = other.await.unwrap();
    front(&queue, "b");
    assert_eq!(other.priority(), Priority::Interactive);
    let next = enter(4, "a", Priority::Interactive);
    drop((background, other));
    assert_eq!(next.await.unwrap().priority(), Priority::Normal);
}
