"""Topics of the demo's support desk that are about money."""

from __future__ import annotations

from reprise.eval.demo_data.demo_parcels import Topic

PAYMENT_TOPICS: tuple[Topic, ...] = (
    Topic(
        "wrong_charge",
        "billing",
        (
            "dispute a charge of {amount}",
            "find out why I was charged {amount}",
            "have a wrong payment of {amount} corrected",
        ),
        "I have found the charge of {amount} in your account and marked it for review. Most often "
        "such a booking is a reservation that was made twice and falls away after a week. If the "
        "review shows a mistake of ours, the sum is returned the same day.",
    ),
    Topic(
        "invoice_copy",
        "billing",
        (
            "get an invoice for order {order}",
            "download the bill for {order}",
            "have the receipt of {order} sent to me",
        ),
        "The invoice for {order} is ready as a file. Open the order, press Invoice and choose "
        "whether the name of a company should appear on it. A tax number that is entered once in "
        "your profile is printed on all invoices that follow.",
    ),
    Topic(
        "payment_declined",
        "billing",
        (
            "pay {amount} after my card was declined",
            "find out why the payment of {amount} failed",
            "get my payment of {amount} through",
        ),
        "The bank turned down the payment of {amount}, and it gives us no reason. Check the "
        "expiry date and the daily limit, then confirm the payment in the app of your bank. If it "
        "fails once more, choose another way to pay; the basket is kept for a day.",
    ),
    Topic(
        "change_card",
        "billing",
        (
            "change my card before {date}",
            "replace the card on file by {date}",
            "add a new card before the payment on {date}",
        ),
        "A new card can be added under Billing with the plus sign. Mark it as preferred, and the "
        "payment due on {date} is taken from it. The old card can be removed as soon as no open "
        "order is linked to it any longer.",
    ),
    Topic(
        "instalments",
        "billing",
        (
            "pay {amount} in instalments",
            "split a payment of {amount}",
            "spread {amount} over several months",
        ),
        "A sum of {amount} can be split into three, six or twelve parts. Choose Pay later at the "
        "checkout and you see the monthly rate before you agree. Three parts are free of "
        "interest, and every plan may be paid off early without a fee.",
    ),
    Topic(
        "discount_code",
        "billing",
        (
            "use a discount code worth {amount}",
            "redeem my voucher of {amount}",
            "make my coupon over {amount} work",
        ),
        "Your code over {amount} goes into the field below the basket, written in capital letters "
        "without spaces. Only one code can be used per order, and articles on sale are left out. "
        "Should the field stay red, send us a picture of the voucher.",
    ),
    Topic(
        "price_match",
        "billing",
        (
            "get {amount} back because the price dropped",
            "have a lower price matched, {amount} less",
            "claim the price difference of {amount}",
        ),
        "We match a lower price within two weeks of purchase. Send us the link to the offer; if "
        "the article is the same and in stock there, we pay the difference of {amount} to your "
        "card. Offers of auctions and of private sellers cannot be counted.",
    ),
    Topic(
        "end_subscription",
        "billing",
        (
            "end my subscription on {date}",
            "cancel my membership by {date}",
            "stop the monthly plan from {date}",
        ),
        "Your plan can be ended at any time and then runs until the month is over. Go to Plans, "
        "press End plan and confirm {date} as the last day. Vouchers that you have collected stay "
        "valid, and you may come back later without a joining fee.",
    ),
)
