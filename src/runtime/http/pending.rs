//! Answers that handlers wait for: [`crate::admin::Outcome::Pending`] on one side,
//! [`crate::admin::Admin::poll_answer`] on the other.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::admin::Answer;

/// Who waits for which answer. As many as the admin API lets wait.
#[derive(Debug, Default)]
pub struct PendingAnswers(RefCell<HashMap<u64, Slot>>);

#[derive(Debug)]
enum Slot {
    Waiting(Option<Waker>),
    Answered(Answer),
}

impl PendingAnswers {
    /// Nobody waits.
    #[must_use]
    pub fn new() -> Rc<Self> {
        Rc::default()
    }

    /// Waits for the answer with this number. To be called in the turn that the number came in, and before
    /// [`Self::complete`]; the future may be dropped at any time.
    pub fn wait(self: &Rc<Self>, id: u64) -> PendingAnswer {
        self.0.borrow_mut().insert(id, Slot::Waiting(None));
        PendingAnswer {
            id,
            answers: Rc::clone(self),
        }
    }

    /// Hands the answer over. It is dropped when nobody waits for it any more.
    pub fn complete(&self, id: u64, answer: Answer) {
        if let Some(slot) = self.0.borrow_mut().get_mut(&id)
            && let Slot::Waiting(Some(waker)) = std::mem::replace(slot, Slot::Answered(answer))
        {
            waker.wake();
        }
    }
}

/// An answer to come.
#[derive(Debug)]
pub struct PendingAnswer {
    id: u64,
    answers: Rc<PendingAnswers>,
}

impl Future for PendingAnswer {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answer> {
        let mut answers = self.answers.0.borrow_mut();
        match answers.remove(&self.id) {
            Some(Slot::Answered(answer)) => Poll::Ready(answer),
            Some(Slot::Waiting(_)) | None => {
                answers.insert(self.id, Slot::Waiting(Some(context.waker().clone())));
                Poll::Pending
            }
        }
    }
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        self.answers.0.borrow_mut().remove(&self.id);
    }
}
